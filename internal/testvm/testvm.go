// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testvm tells tests what the machine offers. A test names what it needs and is skipped
// with the reason when something is missing. The package never makes a test pass.
package testvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Cap is something that a test may need.
type Cap struct {
	name  string
	check func() error // what is missing and how to get it, or nil
}

// Capabilities that tests may need.
var (
	Root        = Cap{"root", needRoot}
	Netns       = Cap{"network namespaces", needNetns}
	Tap         = Cap{"taps", needDevice("/dev/net/tun")}
	QEMU        = Cap{"QEMU", needProgram("qemu-system-x86_64", "qemu-system-x86")}
	KVM         = Cap{"KVM", needDevice("/dev/kvm")}
	GuestImage  = Cap{"a guest image", needGuestImage}
	Containerd  = Cap{"containerd", needProgram("containerd", "containerd")}
	Ctr         = Cap{"ctr", needProgram("ctr", "containerd")}
	Runc        = Cap{"runc", needProgram("runc", "runc")}
	QEMU100     = Cap{"QEMU 10.0", needUnpacked("qemu-10.0", "qemu-system-x86_64")}
	QEMU111     = Cap{"QEMU 11.1", needUnpacked("qemu-11.1", "qemu-system-x86_64")}
	Virtiofsd13 = Cap{"virtiofsd 1.13", needUnpacked("virtiofsd-1.13", "virtiofsd")}
	Docker      = Cap{"Docker 26", needUnpacked("docker", "dockerd")}
	Docker28    = Cap{"Docker 28", needUnpacked("docker-28", "dockerd")}
	Compose     = Cap{"Docker's compose", needUnpacked("compose", "docker-compose")}
	Podman      = Cap{"Podman", needProgram("podman", "podman")}
	Crun        = Cap{"crun", needProgram("crun", "crun")}
	Virtiofsd   = Cap{"virtiofsd", needVirtiofsd}
	Swtpm       = Cap{"swtpm", needProgram("swtpm", "swtpm")}
	TPM2Tools   = Cap{"tpm2-tools", needProgram("tpm2_checkquote", "tpm2-tools")}
	OVMF        = Cap{"OVMF", needFile("/usr/share/ovmf/OVMF.fd", "ovmf")}
	Busybox     = Cap{"a static busybox", needProgram("busybox", "busybox-static")}
	FsckErofs   = Cap{"fsck.erofs", needProgram("fsck.erofs", "erofs-utils")}
	Veritysetup = Cap{"veritysetup", needProgram("veritysetup", "cryptsetup-bin")}
	E2fsck      = Cap{"e2fsck", needProgram("e2fsck", "e2fsprogs")}
	Cgroupv1    = Cap{"cgroup v1", needCgroup(func(t int64) bool { return t != unix.CGROUP2_SUPER_MAGIC })}
	Cgroupv2    = Cap{"cgroup v2", needCgroup(func(t int64) bool { return t == unix.CGROUP2_SUPER_MAGIC })}
)

// given are the capabilities that no set-up can provide: a machine has them or not.
var given = map[string]bool{KVM.name: true, Cgroupv1.name: true, Cgroupv2.name: true}

// Need skips the test unless the machine has all that is named. Where everything is required, as in CI
// ($COCO_REQUIRE is "all"), a missing one that the set-up should have provided is a failure.
func Need(t testing.TB, caps ...Cap) {
	t.Helper()
	for _, c := range caps {
		err := c.check()
		switch {
		case err == nil:
		case os.Getenv("COCO_REQUIRE") == "all" && !given[c.name]:
			t.Fatalf("needs %s: %v", c.name, err)
		default:
			t.Skipf("needs %s: %v", c.name, err)
		}
	}
}

// Has says whether the machine has it.
func Has(c Cap) bool { return c.check() == nil }

// GuestDir is the directory of the guest image for tests: $COCO_GUEST_DIR, else dist/guest of this
// repository. It may not exist: Need(t, GuestImage) tells.
func GuestDir() string {
	if d := os.Getenv("COCO_GUEST_DIR"); d != "" {
		return d
	}
	return filepath.Join(RepoRoot(), "dist", "guest")
}

// Unpacked is the path of a program that tests/setup.sh keeps in its cache: "qemu-10.0", "qemu-system-x86_64".
func Unpacked(thing, program string) string {
	cache := os.Getenv("COCO_TEST_CACHE")
	if cache == "" {
		cache = "/var/cache/coco/test"
	}
	return filepath.Join(cache, thing, "bin", program)
}

// RepoRoot is the root of this repository's work tree.
func RepoRoot() string {
	_, file, _, _ := runtime.Caller(0) // only the file matters
	if dir := filepath.Dir(filepath.Dir(filepath.Dir(file))); filepath.IsAbs(dir) {
		return dir
	}
	// Built with -trimpath: tests run in their package's directory.
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("running as uid %d; run with sudo", os.Geteuid())
	}
	return nil
}

// needNetns tries it once, on a thread that ends with it: a container may be root and yet not allowed to.
var needNetns = sync.OnceValue(func() error {
	if err := needRoot(); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with its namespace
		done <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	return nil
})

func needGuestImage() error {
	for _, f := range []string{"vmlinux", "initrd.img"} {
		if _, err := os.Stat(filepath.Join(GuestDir(), f)); err != nil {
			return fmt.Errorf("%w; build it with make image, or set COCO_GUEST_DIR", err)
		}
	}
	return nil
}

func needProgram(name, pkg string) func() error {
	return func() error {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("no %s in PATH; apt-get install %s", name, pkg)
		}
		return nil
	}
}

// needFile wants a file of a package.
func needFile(path, pkg string) func() error {
	return func() error {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("no %s; apt-get install %s", path, pkg)
		}
		return nil
	}
}

// needVirtiofsd looks where package virtiofsd looks, which it cannot import.
func needVirtiofsd() error {
	for _, p := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"} {
		if _, err := os.Stat(p); err == nil {
			return nil
		}
	}
	return errors.New("no virtiofsd; apt-get install qemu-system-common, or virtiofsd from Debian 13 on")
}

func needUnpacked(thing, program string) func() error {
	return func() error {
		if _, err := os.Stat(Unpacked(thing, program)); err != nil {
			return fmt.Errorf("%w; run tests/setup.sh %s", err, thing)
		}
		return nil
	}
}

func needDevice(path string) func() error {
	return func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}
}

func needCgroup(ok func(fsType int64) bool) func() error {
	return func() error {
		var st unix.Statfs_t
		if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
			return fmt.Errorf("/sys/fs/cgroup: %w", err)
		}
		if !ok(st.Type) {
			text, err := os.ReadFile("/proc/self/cgroup")
			return errors.Join(fmt.Errorf("the machine has the other version: %s",
				strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", " ")), err)
		}
		return nil
	}
}
