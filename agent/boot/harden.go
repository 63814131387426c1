// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
)

// Closed says whether the guest is closed after its boot: no module is loaded, and the console says reasons by code
// only.
func Closed() bool {
	_, asked := KernelParam(contract.ParamClosed)
	return asked || Confidential("/")
}

// Harden takes from the kernel what no container of a guest needs, before there is one.
func Harden() error {
	errs := []error{
		set("kernel/sysrq", "0"),
		set("kernel/kexec_load_disabled", "1"),
	}
	if _, asked := KernelParam(contract.ParamUserns); !asked {
		errs = append(errs, closeUserns("/proc/sys"))
	}
	return errors.Join(errs...)
}

// closeUserns keeps user namespaces from processes without CAP_SYS_ADMIN: much of the kernel is reachable only through
// them. Debian's kernel has a setting for that, others only one that closes them for all.
func closeUserns(root string) error {
	err := writeFile(root+"/kernel/unprivileged_userns_clone", "0")
	if errors.Is(err, fs.ErrNotExist) {
		err = writeFile(root+"/user/max_user_namespaces", "0")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without user namespaces
		return fmt.Errorf("close user namespaces: %w", err)
	}
	return nil
}

// set writes a setting of the kernel; one that it was built without needs none.
func set(name, value string) error {
	err := writeFile("/proc/sys/"+name, value)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kernel setting %s: %w", name, err)
	}
	return nil
}

// Quiet keeps the kernel, and the standard streams of this process, off the console: the host reads it. At level 0 not
// even a panic is printed (console_verbose in include/linux/printk.h).
func Quiet() error {
	if err := writeFile("/proc/sys/kernel/printk", "0 4 0 7"); err != nil {
		return fmt.Errorf("silence the kernel: %w", err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("take the console from descriptor %d: %w", fd, err)
		}
	}
	return nil
}
