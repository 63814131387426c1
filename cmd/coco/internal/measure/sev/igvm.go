// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sev

import (
	"encoding/hex"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/snp"
)

// maxIGVM bounds a file: firmware, kernel and initrd with some room.
const maxIGVM = 1 << 30

// IGVMOptions are the flags of coco measure igvm.
type IGVMOptions struct {
	report.Form
	boot   input.Boot
	loader string
	vcpus  string
	list   bool
}

// IGVMResult is the digest of an IGVM file's launch.
type IGVMResult struct {
	Platform    string             `json:"platform"`
	Loader      string             `json:"loader"`
	VCPUs       int                `json:"vcpus,omitempty"`
	Policy      string             `json:"policy,omitempty"`
	KernelHash  string             `json:"kernel_sha256,omitempty"`
	Measurement measurement.Digest `json:"measurement"`
	Trace       *measurement.Trace `json:"trace,omitempty"`
}

// Lines returns the digest.
func (r *IGVMResult) Lines() []string { return []string{r.Measurement.String()} }

// References names the digest as Trustee's default policy does.
func (r *IGVMResult) References() map[string]string {
	return map[string]string{"snp_launch_measurement": r.Measurement.String()}
}

// Steps returns the trace.
func (r *IGVMResult) Steps() *measurement.Trace { return r.Trace }

// IGVMCommand returns coco measure igvm.
func IGVMCommand() *cobra.Command {
	var o IGVMOptions
	cmd := &cobra.Command{
		Use:   "igvm FILE",
		Short: "Launch digest of an IGVM file",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			results, err := o.run(cmd, args[0])
			if err != nil {
				return fmt.Errorf("measure igvm: %w", err)
			}
			if o.list {
				return nil
			}
			return o.Print(cmd, results)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.loader, "loader", "clh-kvm", "whose rules: clh-kvm, igvmmeasure, igvmmeasure-zero, igvm-crate")
	f.StringVar(&o.vcpus, "vcpus", "1", "number of vCPUs (clh-kvm); several give a digest each")
	f.StringVar(&o.boot.Kernel, "kernel", "", "kernel passed beside the file (clh-kvm)")
	f.StringVar(&o.boot.Initrd, "initrd", "", "initrd passed beside the file")
	f.StringVar(&o.boot.Cmdline, "append", "", "kernel command line passed beside the file")
	o.boot.SumFlags(cmd)
	f.BoolVar(&o.list, "list", false, "list the file's directives instead")
	o.Form.Flags(cmd)
	cmd.AddCommand(createCommand())
	return cmd
}

func (o *IGVMOptions) run(cmd *cobra.Command, path string) ([]report.Result, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := o.boot.Check(); err != nil {
		return nil, err
	}
	loader, err := snp.ParseLoader(o.loader)
	if err != nil {
		return nil, fmt.Errorf("--loader: %w", err)
	}
	counts, err := parseCounts(o.vcpus)
	if err != nil {
		return nil, fmt.Errorf("--vcpus: %w", err)
	}
	raw, err := input.ReadLimited(path, maxIGVM)
	if err != nil {
		return nil, err
	}
	file, err := igvm.Parse(raw)
	if err != nil {
		return nil, err
	}
	if o.list {
		return nil, listIGVM(cmd.OutOrStdout(), file)
	}
	var g errgroup.Group
	hashes := o.boot.Hash(&g)
	if err := g.Wait(); err != nil {
		return nil, err
	}
	o.boot.Notes(cmd)
	launch := snp.IGVMLaunch{File: file, Loader: loader, Kernel: hashes()}
	if loader != snp.CloudHypervisorKVM {
		counts = []int{0} // the file alone decides
	}
	return o.Measure(launch, counts)
}

// Measure computes a digest for each number of vCPUs.
func (o *IGVMOptions) Measure(l snp.IGVMLaunch, counts []int) (out []report.Result, err error) {
	for _, n := range counts {
		r := &IGVMResult{Platform: "snp", Loader: l.Loader.String(), VCPUs: n}
		if l.File.HasPolicy {
			r.Policy = fmt.Sprintf("%#x", l.File.Policy)
		}
		if l.Kernel != nil {
			r.KernelHash = hex.EncodeToString(l.Kernel.Kernel[:])
		}
		if o.Explain {
			r.Trace = &measurement.Trace{}
		}
		l.VCPUs = n
		if r.Measurement, err = snp.MeasureIGVM(l, r.Trace); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func listIGVM(w io.Writer, f *igvm.File) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "format version %d\n", f.Version) // errors surface in Flush
	for _, p := range f.Platforms {
		fmt.Fprintf(t, "platform %s\tmask %#x\n", p.Type, p.Mask)
	}
	if f.HasPolicy {
		fmt.Fprintf(t, "policy %#x\n", f.Policy)
	}
	for i, d := range f.Directives {
		fmt.Fprintf(t, "%d\t%s\tmask %#x\tgpa %#x\tsize %#x\tflags %#x\ttype %d\tarea %d+%#x\tvp %d\tdata %d\n",
			i, d.Type, d.Mask, d.GPA, d.Size, d.Flags, d.DataType, d.Index, d.Offset, d.VP, len(d.Data))
	}
	return t.Flush()
}
