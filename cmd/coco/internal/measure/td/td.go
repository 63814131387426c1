// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package td has the commands that compute the registers of Intel TDX VMs: coco measure tdx and tdx log.
package td

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/tdx"
)

// Registers are the registers in the order in which they are printed.
var Registers = []string{"mrtd", "rtmr0", "rtmr1", "rtmr2"}

// maxKernel bounds a kernel, which must be held in memory: its parts are hashed out of order.
const maxKernel = 256 << 20

// Options are the flags of coco measure tdx.
type Options struct {
	report.Form
	Boot                  input.Boot
	Firmware, Profile     string
	Memory, registers     string
	loader, rsdp, tables  string
	SMBIOS                string
	fwCfg                 []string
	shim, secureBootBuild bool
	backport              bool
	Known                 Content // fields that are set replace the files of the flags
}

// Content holds input that the caller has already read, so that no file is opened for it.
type Content struct {
	Firmware []byte
	ACPI     *tdx.ACPI
}

// Result is the set of registers of one VM.
type Result struct {
	Platform string                        `json:"platform"`
	Profile  string                        `json:"profile,omitempty"`
	Memory   uint64                        `json:"memory,omitempty"`
	Values   map[string]measurement.Digest `json:"registers"`
	Trace    *measurement.Trace            `json:"trace,omitempty"`

	Order []string `json:"-"` // of the registers that were computed
}

// Lines returns the registers.
func (r *Result) Lines() []string {
	out := make([]string, 0, len(r.Order))
	for _, n := range r.Order {
		out = append(out, r.Values[n].String())
	}
	return out
}

// References names the registers as Trustee's default policy does.
func (r *Result) References() map[string]string {
	names := map[string]string{"mrtd": "mr_td", "rtmr0": "rtmr_0", "rtmr1": "rtmr_1", "rtmr2": "rtmr_2"}
	out := map[string]string{}
	for n, d := range r.Values {
		out[names[n]] = d.String()
	}
	return out
}

// Steps returns the trace.
func (r *Result) Steps() *measurement.Trace { return r.Trace }

// Command returns coco measure tdx.
func Command() *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use:   "tdx",
		Short: "MRTD and RTMR0 to RTMR2 of an Intel TDX VM",
		Long: "Prints the registers one per line, in the order of --registers: mrtd alone if only the firmware is\n" +
			"given, else mrtd, rtmr0, rtmr1, rtmr2.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := o.run(cmd)
			if err != nil {
				return fmt.Errorf("measure tdx: %w", err)
			}
			return o.Print(cmd, []report.Result{r})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Firmware, "firmware", "", "firmware image, as given to -bios")
	f.StringVar(&o.Profile, "profile", "", "releases of firmware and VMM, such as edk2-stable202508+qemu-11.0")
	f.StringVar(&o.Memory, "memory", "", "memory of the VM: bytes, or with K, M, G, T")
	f.StringVar(&o.registers, "registers", "", "which registers, such as mrtd,rtmr1,rtmr2")
	f.StringVar(&o.Boot.Kernel, "kernel", "", "kernel of the direct boot (bzImage with EFI stub)")
	f.StringVar(&o.Boot.Initrd, "initrd", "", "initrd of the direct boot")
	f.StringVar(&o.Boot.Cmdline, "append", "", "kernel command line; every byte counts")
	f.BoolVar(&o.shim, "shim", false, "the kernel is started through QEMU's -shim")
	f.StringVar(&o.loader, "acpi-loader", "", "the VM's etc/table-loader, for rtmr0")
	f.StringVar(&o.rsdp, "acpi-rsdp", "", "the VM's etc/acpi/rsdp")
	f.StringVar(&o.tables, "acpi-tables", "", "the VM's etc/acpi/tables")
	f.StringVar(&o.SMBIOS, "smbios", "", "the SMBIOS table that the firmware measures (edk2-stable202505 and later)")
	f.StringArrayVar(&o.fwCfg, "fw-cfg", nil,
		"NAME=FILE: a fw_cfg item that the firmware measures (edk2-stable202505 and later)")
	f.BoolVar(&o.backport, "kernel-backport", false,
		"the kernel measures command line and initrd into rtmr2 although its version is below 6.9")
	f.BoolVar(&o.secureBootBuild, "secure-boot-build", false,
		"the firmware was built with secure boot, though it has no keys")
	o.Form.Flags(cmd)
	cmd.AddCommand(logCommand())
	return cmd
}

func (o *Options) run(cmd *cobra.Command) (*Result, error) {
	empty := input.NoEmpty(cmd, "firmware", "kernel", "initrd", "acpi-loader", "acpi-rsdp", "acpi-tables", "smbios")
	if err := errors.Join(o.Check(), empty, o.Boot.Check()); err != nil {
		return nil, err
	}
	names, err := o.names(cmd)
	if err != nil {
		return nil, err
	}
	if err := o.extends(cmd, names); err != nil {
		return nil, err
	}
	return o.Values(names)
}

// extends refuses to compute RTMR2 for a kernel that leaves it at zero.
func (o *Options) extends(cmd *cobra.Command, names []string) error {
	k, err := o.Boot.Headers()
	if k == nil {
		return nil
	}
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: --kernel %s %v: QEMU would not start it in a TD\n", o.Boot.Kernel, err)
		return nil
	}
	doubt, problem := k.RTMR2()
	switch {
	case !slices.Contains(names, "rtmr2"):
	case problem != nil && !o.backport:
		return fmt.Errorf("--kernel %s: %w; leave rtmr2 out of --registers, "+
			"or give --kernel-backport if the kernel does all the same", o.Boot.Kernel, problem)
	case doubt != nil && !o.backport:
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: --kernel %s: %v\n", o.Boot.Kernel, doubt)
	}
	return nil
}

// Values computes the named registers.
func (o *Options) Values(names []string) (*Result, error) {
	d, err := o.load(names)
	if err != nil {
		return nil, err
	}
	r := &Result{
		Platform: "tdx", Profile: o.Profile, Memory: d.Memory, Values: map[string]measurement.Digest{}, Order: names,
	}
	if o.Explain {
		r.Trace = &measurement.Trace{}
	}
	for _, n := range names {
		if r.Values[n], err = compute(n, d, r.Trace); err != nil {
			if errors.Is(err, tdx.ErrMissing) {
				err = fmt.Errorf("%w; give it, or leave %s out of --registers", err, n)
			}
			return nil, err
		}
	}
	return r, nil
}

func compute(name string, d tdx.Description, t *measurement.Trace) (measurement.Digest, error) {
	switch name {
	case "rtmr0":
		return tdx.RTMR0(d, t)
	case "rtmr1":
		return tdx.RTMR1(d, t)
	case "rtmr2":
		return tdx.RTMR2(d, t)
	}
	var hob []byte
	if d.Memory != 0 {
		im, err := ovmf.Parse(d.Firmware)
		if err != nil {
			return nil, err
		}
		sections, err := im.TDX()
		if err != nil {
			return nil, err
		}
		if hob, err = tdx.HOB(sections, d.Memory); err != nil {
			return nil, err
		}
	}
	return tdx.MRTD(d.Firmware, d.Profile.Order(), hob, t)
}

// names returns the registers to compute.
func (o *Options) names(cmd *cobra.Command) ([]string, error) {
	if o.registers != "" {
		return ParseRegisters(o.registers)
	}
	for _, f := range []string{"kernel", "memory", "acpi-loader", "acpi-rsdp", "acpi-tables", "smbios", "fw-cfg"} {
		if cmd.Flags().Changed(f) {
			return Registers, nil
		}
	}
	return Registers[:1], nil
}

// ParseRegisters reads a list of registers.
func ParseRegisters(list string) ([]string, error) {
	names := strings.Split(list, ",")
	for i, n := range names {
		if !slices.Contains(Registers, n) || slices.Contains(names[:i], n) {
			return nil, fmt.Errorf("--registers %q: each of %s may occur once", list, strings.Join(Registers, ", "))
		}
	}
	return names, nil
}

// load reads what the chosen registers need.
func (o *Options) load(names []string) (d tdx.Description, err error) {
	d.Profile = tdx.Profile{EDK2: 202508, QEMUMajor: 11} // MRTD alone: every release since 9.0 agrees
	needs := func(n string) bool { return slices.Contains(names, n) }
	switch {
	case o.Profile != "":
		if d.Profile, err = tdx.ParseProfile(o.Profile); err != nil {
			return d, fmt.Errorf("--profile: %w", err)
		}
	case len(names) > 1 || names[0] != "mrtd":
		return d, errors.New("give --profile (such as edk2-stable202508+qemu-11.0): the registers but mrtd depend on it")
	}
	if o.Memory != "" {
		if d.Memory, err = ParseSize(o.Memory); err != nil {
			return d, fmt.Errorf("--memory: %w", err)
		}
	}
	if needs("mrtd") || needs("rtmr0") {
		if o.Firmware == "" {
			return d, errors.New("give --firmware")
		}
		if d.Firmware = o.Known.Firmware; d.Firmware == nil {
			if d.Firmware, err = input.ReadLimited(o.Firmware, input.MaxFirmware); err != nil {
				return d, err
			}
		}
	}
	if needs("rtmr0") {
		if err := o.loadTables(&d); err != nil {
			return d, err
		}
	}
	d.Cmdline, d.Shim, d.SecureBootBuild = o.Boot.Cmdline, o.shim, o.secureBootBuild
	if o.Boot.Kernel == "" && needs("rtmr2") {
		return d, errors.New("give --kernel: without one nothing is known of rtmr2")
	}
	if needs("rtmr1") && o.Boot.Kernel != "" {
		if d.Kernel.Data, err = input.ReadLimited(o.Boot.Kernel, maxKernel); err != nil {
			return d, err
		}
	}
	if o.Boot.Initrd != "" {
		d.Initrd, err = digestFile(o.Boot.Initrd)
	}
	return d, err
}

func (o *Options) loadTables(d *tdx.Description) error {
	read := func(path string, dst *tdx.Content) error {
		if path == "" {
			return nil
		}
		b, err := input.ReadLimited(path, 16<<20)
		dst.Data = b
		return err
	}
	acpi := &tdx.ACPI{}
	err := errors.Join(
		read(o.loader, &acpi.Loader), read(o.rsdp, &acpi.RSDP), read(o.tables, &acpi.Tables), read(o.SMBIOS, &d.SMBIOS))
	if o.loader != "" || o.rsdp != "" || o.tables != "" {
		d.ACPI = acpi
	}
	if o.Known.ACPI != nil {
		d.ACPI = o.Known.ACPI
	}
	for _, s := range o.fwCfg {
		name, path, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("--fw-cfg %q is not of the form NAME=FILE", s)
		}
		item := tdx.Item{Name: name}
		err = errors.Join(err, read(path, &item.Content))
		d.FwCfg = append(d.FwCfg, item)
	}
	return err
}

// digestFile streams a file through SHA-384.
func digestFile(path string) (tdx.Content, error) {
	f, err := input.Open(path)
	if err != nil {
		return tdx.Content{}, err
	}
	defer f.Close()
	h := sha512.New384()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10))
	if err != nil {
		return tdx.Content{}, fmt.Errorf("%s: %w", path, err)
	}
	return tdx.Content{Digest: h.Sum(nil), Size: uint64(n)}, nil //nolint:gosec // of a file
}

// ParseSize reads a number of bytes with an optional binary suffix.
func ParseSize(s string) (uint64, error) {
	shift := 0
	digits := strings.TrimSuffix(s, "iB")
	if i := strings.IndexAny(digits, "KMGT"); i == len(digits)-1 && i > 0 {
		shift = 10 * (1 + strings.IndexByte("KMGT", digits[i]))
		digits = digits[:i]
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || n == 0 || n > 1<<50>>shift {
		return 0, fmt.Errorf("%q is not a size such as 2G", s)
	}
	return n << shift, nil
}
