// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/image/ext4"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// loop makes a loop device over a new file of the given size.
func loop(t *testing.T, size int64) (dev, file string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a loop device")
	}
	file = filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, size))
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil { // the test's has ended
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return dev, file
}

func withDevice(t *testing.T, dev, path, access string) func(*specs.Spec) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(dev, &st))
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return func(s *specs.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{{Path: path, Type: "b", Major: major, Minor: minor}}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: "b",
			Major: &major, Minor: &minor, Access: access,
		})
	}
}

// A raw block volume (volumeDevices) is the disk itself, under the name that the pod gave it; what is
// written is on the host's disk, and nobody can mount it there meanwhile.
func TestRawBlockVolumes(t *testing.T) {
	dev, _ := loop(t, 8<<20)
	p := newPod(t, nil)
	change := withDevice(t, dev, "/dev/xvda", "mrw")
	run := func(script string, change func(*specs.Spec)) string {
		t.Helper()
		_, out, done := p.start(nil, script, change)
		if code := done(); code != 0 {
			t.Errorf("script %q exits %d, says %q", script, code, out)
		}
		return out.String()
	}
	if got := run("echo written in the guest | dd of=/dev/xvda bs=512 seek=3 conv=notrunc,sync 2>/dev/null; stat -c %F "+
		"/dev/xvda; dd if=/dev/xvda bs=1M 2>/dev/null | wc -c", change); got != "block special file\n8388608\n" {
		t.Errorf("the container says %q", got)
	}
	fixed, _ := loop(t, 8<<20)
	if got := run("dd if=/dev/xvdb bs=1M 2>/dev/null | wc -c; (echo no | dd of=/dev/xvdb) 2>/dev/null || echo read-only",
		withDevice(t, fixed, "/dev/xvdb", "mr")); got != "8388608\nread-only\n" {
		t.Errorf("a device that may only be read says %q", got)
	}
	f, err := os.Open(dev)
	must(t, err)
	defer f.Close()
	block := make([]byte, 512)
	_, err = f.ReadAt(block, 3*512)
	must(t, err)
	if !strings.HasPrefix(string(block), "written in the guest\n") {
		t.Errorf("the host's disk has %.30q", block)
	}
	if err := unix.Mount(dev, t.TempDir(), "ext4", 0, ""); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mounting the disk beside the VM: %v, want EBUSY", err)
	}
	// One that is mounted is refused.
	other, _ := loop(t, 8<<20)
	format(t, other, 8<<20)
	at := t.TempDir()
	must(t, unix.Mount(other, at, "ext4", 0, ""))
	defer func() { must(t, unix.Unmount(at, 0)) }()
	p.refused(nil, "mounted or in use on the host", withDevice(t, other, "/dev/xvda", "mrw"))
}

func format(t *testing.T, name string, size uint64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	must(t, errors.Join(ext4.Format(f, ext4.Options{Bytes: size, Mode: 0o755, ID: [16]byte{1}, Seed: [16]byte{2}}),
		f.Close()))
}

// A volume that a CSI driver leaves unmounted is mounted by the guest, kept by the disk, and unmounted
// before the VM ends. One that is mounted on the host is refused.
func TestVolumesThatKeepData(t *testing.T) {
	p := newPod(t, nil)
	dev, _ := loop(t, 16<<20)
	format(t, dev, 16<<20)
	at := filepath.Join(p.make("csi", "pvc-1", 0o755), "mount")
	must(t, os.MkdirAll(at, 0o755))
	p.refused([]specs.Mount{bind(at, "/d")}, "a VM cannot write to a file system that the host has mounted", nil)

	record := filepath.Join(hostvolume.DirectDir, base64.URLEncoding.EncodeToString([]byte(at)))
	must(t, os.MkdirAll(record, 0o700))
	t.Cleanup(func() { must(t, os.RemoveAll(record)) })
	data, err := json.Marshal(hostvolume.DirectVolume{
		Type: "block", Device: dev, FSType: "ext4",
		Metadata: map[string]string{"fsGroup": "2000"},
	})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(record, "mountInfo.json"), data, 0o600))
	mounts := []specs.Mount{bind(at, "/d")}
	if got := p.run(mounts, "echo kept >/d/file; stat -c '%a %g' /d"); got != "2775 2000\n" {
		t.Errorf("the container says %q", got)
	}
	if got := p.run(mounts, "cat /d/file"); got != "kept\n" {
		t.Errorf("the next container sees %q", got)
	}
	must(t, p.Shutdown(t.Context()))
	host := t.TempDir()
	if err := unix.Mount(dev, host, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mount the disk after the pod: %v", err)
	}
	defer func() { must(t, unix.Unmount(host, 0)) }()
	if b, err := os.ReadFile(filepath.Join(host, "file")); string(b) != "kept\n" {
		t.Errorf("after the pod the disk has %q, %v", b, err)
	}
	out, _ := exec.CommandContext(t.Context(), "dmesg").Output()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, filepath.Base(dev)) && strings.Contains(line, "not properly unmounted") {
			t.Error(fmt.Sprint("the guest did not unmount it: ", line))
		}
	}
}

// Files and directories of the host are copied once for the pod, and not to be written to; huge pages
// and the host's own file systems are refused; /dev/shm is as large as the engine has made it.
func TestTheHostsFiles(t *testing.T) {
	p := newPod(t, nil)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("of the host\n"), 0o604))
	mounts := []specs.Mount{bind(dir, "/h", "rw"), bind(filepath.Join(dir, "f"), "/one", "rw")}
	if got := p.run(mounts, "cat /h/f /one; stat -c %a /h/f; echo x >/h/f || echo "+
		"read-only"); got != "of the host\nof the host\n604\nread-only\n" {
		t.Errorf("the container says %q", got)
	}
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("changed\n"), 0o604))
	if got := p.run(mounts, "cat /h/f"); got != "of the host\n" {
		t.Errorf("the pod's copy changed to %q", got)
	}
	huge := p.make("empty-dir", "huge", 0o777)
	if err := unix.Mount("none", huge, "hugetlbfs", 0, "pagesize=2M"); err == nil {
		t.Cleanup(func() { must(t, unix.Unmount(huge, 0)) })
		p.refused([]specs.Mount{bind(huge, "/huge")}, "made of huge pages", nil)
	}
	p.refused(nil, "huge pages of 2MB", func(s *specs.Spec) {
		s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
	})
	p.refused([]specs.Mount{bind("/proc/sys", "/x")}, "a view of the host's kernel", nil)
}
