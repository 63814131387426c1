// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kvm checks whether KVM can run an ordinary guest here.
package kvm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Linux, Documentation/virt/kvm/api.rst.
const (
	getAPIVersion = 0xae00
	createVM      = 0xae01
	apiVersion    = 12
)

// Usable returns nil when KVM can run ordinary guests, else why not and what to do. root is the
// root of the file system to look at; only for "/" the device is really opened and a VM made.
//
// That a VM can be made does not prove that one runs: a host that is itself a guest of a PVM
// hypervisor has a working /dev/kvm in which only paravirtualised kernels boot, and others hang
// without a word. So the hardware's own virtualization must be there too.
func Usable(root string) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("KVM is not supported by coco on %s", runtime.GOARCH)
	}
	dev := filepath.Join(root, "dev/kvm")
	if _, err := os.Stat(dev); errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no /dev/kvm: load the module kvm_amd or kvm_intel, and enable virtualization in the " +
			"firmware (in a cloud VM: choose a type with nested virtualization)")
	}
	info, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return fmt.Errorf("KVM: %w", err)
	}
	if !hasFlag(info, "vmx") && !hasFlag(info, "svm") {
		if _, err := os.Stat(filepath.Join(root, "sys/module/kvm_pvm")); err == nil {
			return errors.New("/dev/kvm is that of a PVM hypervisor (module kvm_pvm, no vmx or svm): ordinary guest kernels " +
				"hang in it; use a machine with hardware virtualization")
		}
		return errors.New("/dev/kvm is there but the processor offers neither vmx nor svm: use a machine with hardware " +
			"virtualization")
	}
	if root != "/" {
		return nil
	}
	return tryVM(dev)
}

func hasFlag(cpuinfo []byte, flag string) bool {
	for line := range bytes.Lines(cpuinfo) {
		if rest, ok := bytes.CutPrefix(line, []byte("flags")); ok {
			for _, f := range bytes.Fields(rest) {
				if string(f) == flag {
					return true
				}
			}
			return false // all processors are alike
		}
	}
	return false
}

// tryVM makes an empty VM and drops it.
func tryVM(dev string) error {
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/kvm: %w: run as root or join the group kvm", err)
	}
	defer unix.Close(fd)
	v, err := unix.IoctlRetInt(fd, getAPIVersion)
	if err != nil {
		return fmt.Errorf("ask /dev/kvm for its API version: %w", err)
	}
	if v != apiVersion {
		return fmt.Errorf("/dev/kvm speaks API version %d, not %d", v, apiVersion)
	}
	vm, err := unix.IoctlRetInt(fd, createVM)
	if err != nil {
		return fmt.Errorf("make a VM with /dev/kvm: %w: another hypervisor may hold the processor's virtualization", err)
	}
	return unix.Close(vm)
}
