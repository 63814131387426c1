// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
)

// LaunchFile is the name, in the pod's directory below runtime.state_dir, of the JSON form of
// launch.Expected.
const LaunchFile = "launch.json"

// launchInput returns the inputs of the launch plan under the given configuration.
func (o Options) launchInput(cfg configs.Config, boot hypervisor.Boot) launch.Input {
	return launch.Input{
		ID: o.ID, Config: cfg, Machine: o.Host.Machine, Spec: o.Spec, Boot: boot,
		Initdata: o.Initdata, ReadFile: configs.ReadInitdata,
	}
}

// addInitdata gives the VM a device with the pod's initdata.
func (c *creation) addInitdata(d *initdata.Document) error {
	if d == nil {
		return nil
	}
	f, err := bootfiles.InMemory(initdata.DiskID, d.Disk())
	if err != nil {
		return fmt.Errorf("initdata: %w", err)
	}
	c.u.Push("close the initdata", func(context.Context) error { return closeOnce(f) })
	c.initdata = f
	c.vmspec.Blocks = []hypervisor.Block{{ID: initdata.DiskID, File: f, ReadOnly: true}}
	c.log.Info("pod has initdata", "pod", c.opts.ID, "algorithm", d.Algorithm, "digest", fmt.Sprintf("%x", d.Digest()))
	for _, file := range d.Insecure() {
		c.log.Warn("insecure: "+file+" in the pod's initdata accepts what nobody proves", "pod", c.opts.ID)
	}
	return nil
}

// addParts gives the VM a read-only disk with each part of the guest image that the pod needs. Parts lie beside the
// initramfs.
func (c *creation) addParts(parts []string) error {
	for _, name := range parts {
		initrd := c.vmspec.Boot.Initrd
		if initrd == nil {
			return fmt.Errorf("the pod's initdata asks for %s, and the VM boots without an initramfs: %w", name,
				errdefs.ErrFailedPrecondition)
		}
		f, err := os.Open(filepath.Join(filepath.Dir(initrd.Name()), name+contract.PartSuffix))
		if err != nil {
			return fmt.Errorf("the pod's initdata asks for %s, which the guest image does not have: %w; make the image with "+
				"coco guest build --part: %w", name, err, errdefs.ErrFailedPrecondition)
		}
		c.u.Push("close "+name, func(context.Context) error { return closeOnce(f) })
		c.opened = append(c.opened, f) // closed once the VMM has it
		c.vmspec.Blocks = append(c.vmspec.Blocks, hypervisor.Block{ID: name, File: f, ReadOnly: true})
	}
	return nil
}

// measuring is the launch digest on its way. It is computed beside the other steps.
type measuring struct {
	done      chan struct{} // closed when the rest is set
	rehearsal bool
	expected  launch.Expected
	snp       *hypervisor.SNP // with the ID block
	err       error
}

// beginMeasuring starts to compute the launch digest: of this VM where hardware measures it, else of the VM
// that the pod would have by the configuration that is rehearsed.
func (c *creation) beginMeasuring(context.Context) error {
	v, rehearsal := c.vmspec, c.opts.Rehearse != nil
	if rehearsal {
		var err error
		if v, err = c.rehearse(*c.opts.Rehearse); err != nil {
			return fmt.Errorf("runtime.rehearse, %s: %w", c.opts.Config.Runtime.Rehearse, err)
		}
	}
	if v.TEE == hypervisor.TEENone {
		return nil
	}
	m := &measuring{done: make(chan struct{}), rehearsal: rehearsal}
	if !c.Life.Spawn(func(ctx context.Context) {
		defer close(m.done)
		heads, err := bootfiles.Look(v.Boot)
		var doubt error
		if err == nil {
			doubt, err = launch.Check(v, heads)
		}
		if doubt != nil {
			c.log.Warn("the launch may go differently", "pod", c.opts.ID, "rehearsal", rehearsal, "reason", doubt)
		}
		var chain launch.Chain
		if err == nil {
			chain, err = bootfiles.Read(ctx, v.Boot)
		}
		if err == nil {
			m.expected, m.snp, err = launch.Expect(v, chain)
		}
		m.expected.Rehearsal, m.err = rehearsal, err
	}) {
		return errEnded
	}
	c.measuring = m
	c.u.Push("end the measurement", func(context.Context) error { <-m.done; return nil }) // its context has ended
	return nil
}

// rehearse describes the VM that the pod would have by another configuration.
func (c *creation) rehearse(cfg configs.Config) (v hypervisor.VMSpec, err error) {
	if p := cfg.Hypervisor.Platform; p != "snp" && p != "tdx" {
		return v, fmt.Errorf("its hypervisor.platform is %q, which has no launch digest: name a configuration for snp or "+
			"tdx: %w", p, errdefs.ErrInvalidArgument)
	}
	boot, err := c.openBoot(cfg)
	if err != nil {
		return v, err
	}
	plan, err := launch.For(c.opts.launchInput(cfg, boot))
	return plan.VM, err
}

// finishMeasuring waits for the launch digest, publishes it and pins it by the ID block. The VM must not
// start before.
func (c *creation) finishMeasuring(ctx context.Context) error {
	m := c.measuring
	if m == nil {
		return nil
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if m.err != nil {
		return fmt.Errorf("launch digest: %w: %w", m.err, errdefs.ErrFailedPrecondition)
	}
	if !m.rehearsal && m.snp != nil {
		c.vmspec.SNP = m.snp
	}
	l := m.expected
	c.Expected = &l
	c.log.Info("launch digest", slog.String("pod", c.opts.ID), slog.String("platform", l.Platform),
		slog.Bool("rehearsal", l.Rehearsal),
		slog.String("algorithm", l.Algorithm), slog.String("digest", l.Digest), slog.Int("vcpus", l.VCPUs),
		slog.Uint64("memory_mib", l.MemoryMiB),
		slog.String("firmware", l.Firmware), slog.String("kernel", l.Kernel), slog.String("initrd", l.Initrd),
		slog.String("host_data", l.HostData))
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.StateDir, LaunchFile), append(text, '\n'), 0o600)
}
