// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
)

// Names of the guest image's files.
const (
	GuestELF      = "vmlinux"       // uncompressed kernel with a PVH entry, for the plain platform
	GuestBzImage  = "vmlinuz"       // stock kernel, for platforms that boot through firmware
	GuestInitrd   = "initrd.img"    // initramfs
	GuestManifest = "manifest.json" // digests, origins and the kernel command line
)

// BootFiles is a boot chain as paths, with everything that the configuration leaves open filled in.
type BootFiles struct {
	Kernel, Initrd, Firmware string // Firmware may be empty
	Cmdline                  string
}

// shareDirs lists the places of coco's read-only data: beside the running executable, then the
// usual prefixes.
func shareDirs() []string {
	var dirs []string
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dirs = append(dirs, filepath.Join(filepath.Dir(filepath.Dir(exe)), "share/coco"))
	}
	for _, d := range []string{"/usr/local/share/coco", "/usr/share/coco"} {
		if len(dirs) == 0 || dirs[0] != d {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// guestDir is the configured directory of the guest image, or the first of the usual places that
// exists, or the first of them at all, so that errors have a name to show.
func (h Hypervisor) guestDir() string {
	if h.GuestDir != "" {
		return h.GuestDir
	}
	dirs := shareDirs()
	for _, d := range dirs {
		g := filepath.Join(d, "guest")
		if st, err := os.Stat(g); err == nil && st.IsDir() {
			return g
		}
	}
	return filepath.Join(dirs[0], "guest")
}

// Boot resolves the boot chain: the configured files, else those of the guest image; the command
// line of the image's manifest, else contract.Cmdline; then hypervisor.kernel_params. It reads the manifest and
// does not look at the other files: CheckFiles does.
func (h Hypervisor) Boot() (BootFiles, error) {
	dir := h.guestDir()
	b := BootFiles{Kernel: h.Kernel, Initrd: h.Initrd, Firmware: h.Firmware}
	if b.Kernel == "" {
		name := GuestELF
		if h.Platform != "none" && h.Platform != "" || h.Firmware != "" {
			name = GuestBzImage
		}
		b.Kernel = filepath.Join(dir, name)
	}
	if b.Initrd == "" {
		b.Initrd = filepath.Join(dir, GuestInitrd)
	}
	cmdline, err := manifestCmdline(filepath.Join(dir, GuestManifest))
	if err != nil {
		return BootFiles{}, err
	}
	b.Cmdline = strings.TrimSpace(cmdline + " " + h.KernelParams)
	if h.Platform == "none" || h.Platform == "" {
		for _, param := range []string{contract.ParamPortForward, contract.ParamResolver} {
			if !slices.Contains(strings.Fields(b.Cmdline), param) {
				b.Cmdline += " " + param
			}
		}
	}
	return b, nil
}

// manifestCmdline reads only what is needed here; the manifest's own package knows the rest.
func manifestCmdline(path string) (string, error) {
	text, err := readFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return contract.Cmdline, nil
	}
	if err != nil {
		return "", fmt.Errorf("read guest image manifest %s: %w", path, err)
	}
	var m struct {
		Cmdline string `json:"cmdline"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return "", fmt.Errorf("guest image manifest %s: %w", path, err)
	}
	if m.Cmdline == "" {
		return contract.Cmdline, nil
	}
	if what := line(2048).check(m.Cmdline); what != "" {
		return "", fmt.Errorf("guest image manifest %s: cmdline: %s", path, what)
	}
	return m.Cmdline, nil
}

// CheckFiles looks whether the files that a VM needs are there and says in a sentence for each
// that is not what to do. The class is errdefs.ErrFailedPrecondition.
func (c Config) CheckFiles() error {
	h := c.Hypervisor
	var errs []error
	note := func(key, what, path, advice string, executable bool) {
		if err := checkFile(path, executable); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w; %s, or set hypervisor.%s", what, path, err, advice, key))
		}
	}
	vmm, firmware := "install QEMU (Debian: apt-get install qemu-system-x86)",
		"install an OVMF build for platform "+h.Platform+" (for vtpm Debian has one: apt-get install ovmf)"
	if h.Type == TypeCLH {
		vmm, firmware = "install Cloud Hypervisor (a release binary; for platform snp a build of one's own)",
			"make one (coco measure igvm create)"
	}
	note("path", "VMM", h.Path, vmm, true)
	if h.Platform == PlatformVTPM {
		if err := checkFile(c.VTPM.Program, true); err != nil {
			errs = append(errs, fmt.Errorf("virtual TPM %s: %w; install swtpm (Debian: apt-get install swtpm), or set "+
				"vtpm.program", c.VTPM.Program, err))
		}
		if ca := c.VTPM.CA; ca != "" {
			if err := checkFile(filepath.Join(ca, "ca.crt"), false); err != nil {
				errs = append(errs, fmt.Errorf("CA of virtual TPMs %s: ca.crt %w; make it (coco node tpm-ca --dir %[1]s)", ca, err))
			}
		}
	}
	b, err := h.Boot()
	if err != nil {
		errs = append(errs, err)
	} else {
		note("kernel", "guest kernel", b.Kernel, "build and install the guest image (make image install)", false)
		note("initrd", "guest initramfs", b.Initrd, "build and install the guest image (make image install)", false)
		if b.Firmware != "" {
			note("firmware", "firmware", b.Firmware, firmware, false)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, errors.Join(errs...))
}

func checkFile(path string, executable bool) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("does not exist")
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errors.New("is a " + kind(st.Mode()) + ", not a file")
	case st.Size() == 0:
		return errors.New("is empty")
	case executable && st.Mode().Perm()&0o111 == 0:
		return errors.New("is not executable")
	}
	return nil
}
