// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/sev"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/td"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/hypervisor/qemu/qtest"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/tdx"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
)

// configOptions are the flags of coco measure --config.
type configOptions struct {
	report.Form
	podOptions
	config, memory, profile string
	smbios, registerList    string
	vcpus, nics, physBits   int
	noCache                 bool
}

func (o *configOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "measure the VMs of pods of this configuration file")
	f.IntVar(&o.vcpus, "vcpus", 0, "with --config: number of vCPUs; without it all that pods can get, as a table")
	f.StringVar(&o.memory, "memory", "",
		"with --config: memory of the VM, such as 2G; only on TDX anything depends on it")
	f.StringVar(&o.profile, "profile", "", "with --config, for TDX: releases of firmware and VMM, for the RTMRs too")
	f.StringVar(&o.registerList, "registers", "",
		"with --config, for TDX: which registers, such as mrtd,rtmr1,rtmr2; by default all that what is given allows")
	f.StringVar(&o.smbios, "smbios", "",
		"with --config, for TDX: the SMBIOS table that the firmware measures (profiles from edk2-stable202505 on), for rtmr0")
	f.IntVar(&o.nics, "nics", 1, "with --config, for TDX: network interfaces of the VM at boot, which are in RTMR0")
	f.IntVar(&o.physBits, "phys-bits", 46,
		"with --config, for TDX: physical address bits that the firmware uses, which are in RTMR0 (46 with 4-level paging)")
	f.BoolVar(&o.noCache, "no-cache", false,
		"with --config, for TDX: read the ACPI tables from QEMU though they are known")
	o.podOptions.flags(cmd)
	o.Form.Flags(cmd)
}

func (o *configOptions) run(cmd *cobra.Command) error {
	path, err := filepath.Abs(o.config)
	if err != nil {
		return err
	}
	c, err := configs.Load(path)
	if err != nil {
		return err
	}
	h := c.Hypervisor
	if err := errors.Join(o.Check(), o.size(cmd, h)); err != nil {
		return err
	}
	if cmd.Flags().Changed("pod") {
		return o.runPods(cmd, c)
	}
	if o.idBlock || o.runtimeClass != "" {
		return errors.New("--id-block and --runtime-class want --pod")
	}
	results, err := o.measureSizes(cmd, h)
	if err != nil {
		return err
	}
	if h.Platform == "snp" && !cmd.Flags().Changed("vcpus") && !o.JSON && !o.Explain && o.References == "" {
		return snpTable(cmd.OutOrStdout(), results)
	}
	return o.Print(cmd, results)
}

// measureSizes measures the VM of the size that was asked for, or of all sizes that pods get.
func (o *configOptions) measureSizes(cmd *cobra.Command, h configs.Hypervisor) ([]report.Result, error) {
	files, err := h.Boot()
	if err != nil {
		return nil, err
	}
	shape := launch.Shape{VCPUs: o.vcpus, MemoryMiB: o.memoryMiB()}
	m := machine{h: h, vm: launch.VM("", h, shape, hypervisor.Boot{Cmdline: files.Cmdline}), files: files}
	switch m.vm.TEE {
	case hypervisor.TEESNP:
		if err := (chains{}).read(cmd, &m, bootfiles.Read); err != nil {
			return nil, err
		}
		return o.snp(cmd, m)
	case hypervisor.TEETDX:
		if err := (chains{}).read(cmd, &m, firmwareOnly); err != nil {
			return nil, err
		}
		r, err := o.tdxValues(cmd.Context(), m)
		return []report.Result{r}, err
	}
	return nil, fmt.Errorf("hypervisor.platform is %q: such VMs have no launch digest, since no hardware measures them; "+
		"set it to \"snp\" or \"tdx\"", h.Platform)
}

// size refuses sizes that no pod of the configuration gets.
func (o *configOptions) size(cmd *cobra.Command, h configs.Hypervisor) error {
	if cmd.Flags().Changed("vcpus") {
		if o.vcpus < 1 || o.vcpus > snp.MaxVCPUs {
			return fmt.Errorf("--vcpus %d is not between 1 and %d", o.vcpus, snp.MaxVCPUs)
		}
		if h.MaxVCPUs > 0 && o.vcpus > h.MaxVCPUs {
			return fmt.Errorf("--vcpus %d: no pod gets more than hypervisor.max_vcpus, which is %d", o.vcpus, h.MaxVCPUs)
		}
	}
	if o.memory == "" {
		return nil
	}
	n, err := td.ParseSize(o.memory)
	switch {
	case err != nil:
		return fmt.Errorf("--memory: %w", err)
	case n%(1<<20) != 0:
		return fmt.Errorf("--memory %s: VMs have whole MiB", o.memory)
	case h.MaxMemoryMiB > 0 && n>>20 > h.MaxMemoryMiB:
		return fmt.Errorf("--memory %s: no VM gets more than hypervisor.max_memory_mib, which is %d",
			o.memory, h.MaxMemoryMiB)
	}
	return nil
}

// memoryMiB is the memory that was asked for, 0 if none was.
func (o *configOptions) memoryMiB() uint64 {
	n, err := td.ParseSize(o.memory)
	if o.memory == "" || err != nil {
		return 0 // size has refused what is none
	}
	return n >> 20
}

// snp measures all numbers of vCPUs, or the one that was asked for.
func (o *configOptions) snp(cmd *cobra.Command, m machine) ([]report.Result, error) {
	if o.profile != "" {
		return nil, errors.New("--profile is for TDX: hypervisor.platform is \"snp\"")
	}
	counts := []int{o.vcpus}
	if !cmd.Flags().Changed("vcpus") {
		if m.h.MaxVCPUs == 0 {
			return nil, errors.New("hypervisor.max_vcpus is 0, which means as many as the node has, " +
				"so the list of digests is unknown here; set it, or give --vcpus")
		}
		counts = configs.VCPUCounts(m.h.MaxVCPUs)
	}
	d, err := launch.Describe(m.vm, m.chain)
	if err != nil {
		return nil, err
	}
	if d.IGVM != nil {
		return (&sev.IGVMOptions{Form: o.Form}).Measure(*d.IGVM, counts)
	}
	return (&sev.Options{Form: o.Form, Mode: "snp", VMM: "qemu", Model: m.h.CPUModel}).Measure(*d.SNP, counts)
}

// tdxValues computes the registers of a VM. Its size is zero where it is unknown; then RTMR0 is, too.
func (o *configOptions) tdxValues(ctx context.Context, m machine) (*td.Result, error) {
	spec, boot := m.vm, m.files
	t := td.Options{
		Form: o.Form, Firmware: boot.Firmware, Known: td.Content{Firmware: m.chain.Firmware},
		Profile: o.profile, SMBIOS: o.smbios,
	}
	if spec.MemoryMiB > 0 {
		t.Memory = fmt.Sprintf("%dM", spec.MemoryMiB)
	}
	names := []string{"mrtd"}
	if o.profile != "" {
		t.Boot = input.Boot{Kernel: boot.Kernel, Initrd: boot.Initrd, Cmdline: boot.Cmdline}
		p, err := tdx.ParseProfile(o.profile)
		if err != nil {
			return nil, fmt.Errorf("--profile: %w", err)
		}
		if p.KernelPatched() && t.Memory == "" {
			return nil, fmt.Errorf("--profile %s: QEMU patches the kernel there, so RTMR1 depends on the memory: "+
				"give --memory", p)
		}
		names = []string{"mrtd", "rtmr1", "rtmr2"}
		if spec.CPU.Count > 0 && spec.MemoryMiB > 0 && (o.smbios != "" || !p.MeasuresSMBIOS()) {
			names = td.Registers
		}
	}
	if o.registerList != "" {
		var err error
		if names, err = td.ParseRegisters(o.registerList); err != nil {
			return nil, err
		}
	}
	if slices.Contains(names, "rtmr0") {
		if spec.CPU.Count == 0 || spec.MemoryMiB == 0 {
			return nil, errors.New("rtmr0 depends on the size of the VM: give --vcpus and --memory")
		}
		p, err := tdx.ParseProfile(o.profile)
		if err != nil {
			return nil, fmt.Errorf("--profile: %w", err)
		}
		if t.Known.ACPI, err = o.tables(ctx, m.h, spec, p); err != nil {
			return nil, err
		}
	}
	return t.Values(names)
}

// tables reads the ACPI tables of a VM from the QEMU that will run it.
func (o *configOptions) tables(
	ctx context.Context, h configs.Hypervisor, spec hypervisor.VMSpec, p tdx.Profile,
) (*tdx.ACPI, error) {
	for i := range o.nics {
		spec.NICs = append(spec.NICs, hypervisor.NIC{ID: fmt.Sprint("nic", i)})
	}
	cache := qtest.Cache{Dir: cacheDir()}
	if o.noCache {
		cache.Dir = ""
	}
	files, err := cache.Read(ctx, qemu.Tables(spec, h.Path), qtest.OVMF(p.EDK2, o.physBits),
		qtest.Loader, qtest.RSDP, qtest.ACPI)
	if err != nil {
		return nil, fmt.Errorf("ACPI tables for rtmr0: %w", err)
	}
	return &tdx.ACPI{
		Loader: tdx.Content{Data: files[qtest.Loader]},
		RSDP:   tdx.Content{Data: files[qtest.RSDP]},
		Tables: tdx.Content{Data: files[qtest.ACPI]},
	}, nil
}

// snpTable prints one line for each number of vCPUs.
func snpTable(out io.Writer, results []report.Result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VCPUS\tMEASUREMENT")
	for _, r := range results {
		switch r := r.(type) {
		case *sev.Result:
			fmt.Fprintf(w, "%d\t%s\n", r.VCPUs, r.Measurement)
		case *sev.IGVMResult:
			fmt.Fprintf(w, "%d\t%s\n", r.VCPUs, r.Measurement)
		}
	}
	return w.Flush()
}
