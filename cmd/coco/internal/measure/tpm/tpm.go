// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tpm has the command that computes the PCRs of VMs of platform vtpm: coco measure vtpm.
package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/ulikunitz/xz/lzma"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/td"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/vtpm"
	"github.com/coco-shim/coco/plan/launch"
)

// Bounds of what is read.
const (
	maxKernel   = 256 << 20
	maxInitrd   = 1 << 30
	maxInitdata = 1 << 20
)

// options are the flags of coco measure vtpm.
type options struct {
	report.Form
	config, firmware, kernel, initrd, cmdline string
	memory, initdata, pei                     string
}

// Result is the set of PCRs of one VM.
type Result struct {
	Platform string                        `json:"platform"`
	Memory   uint64                        `json:"memory"` // bytes
	Values   map[string]measurement.Digest `json:"registers"`
	Trace    *measurement.Trace            `json:"trace,omitempty"`

	numbers []int // of the PCRs that were computed
}

// Lines returns the PCRs as coco verify takes them.
func (r *Result) Lines() []string {
	out := make([]string, 0, len(r.numbers))
	for _, n := range r.numbers {
		out = append(out, fmt.Sprintf("%d=%s", n, r.Values[name(n)]))
	}
	return out
}

// References names the PCRs for policies.
func (r *Result) References() map[string]string {
	out := map[string]string{}
	for n, v := range r.Values {
		out["tpm_"+n] = v.String()
	}
	return out
}

// Steps returns the trace.
func (r *Result) Steps() *measurement.Trace { return r.Trace }

func name(pcr int) string { return fmt.Sprintf("pcr%02d", pcr) }

// Command returns coco measure vtpm.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "vtpm",
		Short: "PCRs of a VM of platform vtpm",
		Long: "Prints the PCRs of the SHA-256 bank that the virtual TPM of a VM has once its agent serves, one\n" +
			"NUMBER=VALUE per line, for OVMF of edk2-stable202211 (Debian 12) and Linux 6.12. They prove what was booted\n" +
			"to whoever trusts the node that runs the TPM; such a VM is not confidential.\n\n" +
			"PCR 4 depends on the memory of the VM, PCR 8 on the initdata. PCR 0 depends on vCPUs and memory in a way\n" +
			"that only the firmware knows: it is printed with --pei, from the event log of a trusted VM of that size.\n" +
			"PCR 10 is left out, which is Linux' own.",
		Example: "  coco measure vtpm --config /etc/coco/config.toml --initdata initdata.toml --reference-values broker",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := o.run(cmd)
			if err != nil {
				return fmt.Errorf("measure vtpm: %w", err)
			}
			return o.Print(cmd, []report.Result{r})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "take boot files, command line and memory from this configuration file")
	f.StringVar(&o.firmware, "firmware", "", "firmware image, as given to -bios")
	f.StringVar(&o.kernel, "kernel", "", "kernel (bzImage with EFI stub)")
	f.StringVar(&o.initrd, "initrd", "", "initrd")
	f.StringVar(&o.cmdline, "append", "", "kernel command line; every byte counts")
	f.StringVar(&o.memory, "memory", "",
		"memory of the VM, such as 640M; with --config by default that of a pod without limits")
	f.StringVar(&o.initdata, "initdata", "",
		"initdata document (TOML) of the pod; with --config by default the one that the configuration names")
	f.StringVar(&o.pei, "pei", "", "SHA-256 under which the firmware measures PEIFV, in hexadecimal")
	o.Form.Flags(cmd)
	return cmd
}

func (o *options) run(cmd *cobra.Command) (*Result, error) {
	empty := input.NoEmpty(cmd, "config", "firmware", "kernel", "initrd", "memory", "initdata", "pei")
	if err := errors.Join(o.Check(), empty); err != nil {
		return nil, err
	}
	d := vtpm.Description{Cmdline: o.cmdline}
	if err := o.configured(cmd, &d); err != nil {
		return nil, err
	}
	if o.firmware == "" || o.kernel == "" || o.initrd == "" {
		return nil, errors.New("give --config, or --firmware, --kernel and --initrd")
	}
	if len(d.Cmdline) > launch.MaxCmdline {
		return nil, fmt.Errorf("the command line has %d bytes: the kernel takes %d", len(d.Cmdline), launch.MaxCmdline)
	}
	if o.memory != "" {
		n, err := td.ParseSize(o.memory)
		if err != nil {
			return nil, fmt.Errorf("--memory: %w", err)
		}
		d.Memory = n
	}
	if d.Memory == 0 {
		return nil, errors.New("give --memory: PCR 4 depends on it")
	}
	if err := o.read(&d); err != nil {
		return nil, err
	}
	r := &Result{Platform: configs.PlatformVTPM, Memory: d.Memory, Values: map[string]measurement.Digest{}}
	if o.Explain {
		r.Trace = &measurement.Trace{}
	}
	values, err := vtpm.PCRs(d, r.Trace)
	if err != nil {
		return nil, err
	}
	r.numbers = slices.Sorted(maps.Keys(values))
	for n, v := range values {
		r.Values[name(n)] = v
	}
	return r, nil
}

// configured takes what no flag says from the configuration.
func (o *options) configured(cmd *cobra.Command, d *vtpm.Description) error {
	if o.config == "" {
		return nil
	}
	if o.firmware != "" || o.kernel != "" || o.initrd != "" || cmd.Flags().Changed("append") {
		return errors.New("--config goes without --firmware, --kernel, --initrd and --append")
	}
	path, err := filepath.Abs(o.config)
	if err != nil {
		return err
	}
	c, err := configs.Load(path)
	if err != nil {
		return err
	}
	h := c.Hypervisor
	if h.Platform != configs.PlatformVTPM {
		return fmt.Errorf("hypervisor.platform of %s is %q: its VMs have no TPM", o.config, h.Platform)
	}
	files, err := h.Boot()
	if err != nil {
		return err
	}
	o.firmware, o.kernel, o.initrd, d.Cmdline = files.Firmware, files.Kernel, files.Initrd, files.Cmdline
	if o.initdata == "" {
		o.initdata = h.Initdata
	}
	shape, err := launch.ShapeOf(h, launch.Machine{MemoryMiB: 1 << 40}, nil)
	d.Memory = shape.MemoryMiB << 20
	return err
}

// read reads the files.
func (o *options) read(d *vtpm.Description) error {
	fw, err := input.ReadLimited(o.firmware, input.MaxFirmware)
	if err != nil {
		return err
	}
	if d.Firmware.DXE, err = drivers(fw); err != nil {
		return fmt.Errorf("firmware %s: %w", o.firmware, err)
	}
	if o.pei != "" {
		b, err := hex.DecodeString(o.pei)
		if err != nil || len(b) != sha256.Size {
			return fmt.Errorf("--pei %.80q is no SHA-256 in hexadecimal", o.pei)
		}
		d.Firmware.PEI = [sha256.Size]byte(b)
	}
	if d.Kernel, err = input.ReadLimited(o.kernel, maxKernel); err != nil {
		return err
	}
	if d.Initrd, d.InitrdSize, err = hash(o.initrd); err != nil {
		return err
	}
	if o.initdata == "" {
		return nil
	}
	text, err := input.ReadLimited(o.initdata, maxInitdata)
	if err != nil {
		return err
	}
	doc, err := initdata.FromText(text)
	if err == nil && doc.Algorithm != "sha256" {
		err = fmt.Errorf("algorithm %q: platform vtpm takes sha256", doc.Algorithm)
	}
	if err != nil {
		return fmt.Errorf("--initdata %s: %w", o.initdata, err)
	}
	sum := [sha256.Size]byte(doc.Digest())
	d.Initdata = &sum
	return nil
}

// hash streams a file through SHA-256.
func hash(path string) (sum [sha256.Size]byte, size uint64, err error) {
	f, err := input.Open(path)
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxInitrd))
	return [sha256.Size]byte(h.Sum(nil)), uint64(n), err //nolint:gosec // not negative
}

// drivers returns the digest of the firmware's volume of drivers.
func drivers(fw []byte) ([sha256.Size]byte, error) {
	v, err := ovmf.DriverVolume(fw, func(b []byte, limit int) ([]byte, error) {
		r, err := lzma.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
		if err == nil && len(out) > limit {
			err = fmt.Errorf("more than %d bytes", limit)
		}
		return out, err
	})
	return sha256.Sum256(v), err
}
