// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
)

// machine is a VM with what its digest depends on.
type machine struct {
	h     configs.Hypervisor
	vm    hypervisor.VMSpec
	files configs.BootFiles
	chain launch.Chain
}

// readBoot is bootfiles.Read, or firmwareOnly.
type readBoot func(ctx context.Context, boot hypervisor.Boot) (launch.Chain, error)

// firmwareOnly reads what MRTD depends on.
func firmwareOnly(ctx context.Context, boot hypervisor.Boot) (c launch.Chain, err error) {
	c.Firmware, err = bootfiles.Firmware(ctx, boot.Firmware)
	return c, err
}

// chains are boot chains that were read, without their command line.
type chains map[configs.BootFiles]launch.Chain

// read reads the boot chain of a VM into m.chain. It refuses what the shim refuses before launch, and warns of checks
// that are not possible.
func (c chains) read(cmd *cobra.Command, m *machine, read readBoot) (err error) {
	if err := present(m.files); err != nil {
		return err
	}
	boot, err := bootfiles.Open(m.files)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bootfiles.Close(boot)) }()
	heads, err := bootfiles.Look(boot)
	if err == nil {
		var doubt error
		if doubt, err = launch.Check(m.vm, heads); doubt != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %v\n", doubt)
		}
	}
	if err != nil {
		return fmt.Errorf("the shim would refuse the boot files: %w", err)
	}
	key := m.files
	key.Cmdline = ""
	chain, ok := c[key]
	if !ok {
		if chain, err = read(cmd.Context(), boot); err != nil {
			return err
		}
		c[key] = chain
	}
	m.chain = chain
	if err := launch.CheckFirmware(m.h.Type, m.vm, chain.Firmware); err != nil {
		return fmt.Errorf("the shim would refuse firmware %s: %w", m.files.Firmware, err)
	}
	return nil
}

// present names the boot files that are missing. Unlike the shim it does not ask for the VMM.
func present(boot configs.BootFiles) error {
	var errs []error
	for _, f := range []struct{ key, path string }{
		{"firmware", boot.Firmware}, {"kernel", boot.Kernel}, {"initrd", boot.Initrd},
	} {
		if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, fmt.Errorf("%s cannot be measured: %w; install it, or set hypervisor.%s", f.key, err, f.key))
		}
	}
	return errors.Join(errs...)
}
