// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package verify has the command that verifies evidence of a guest. It reads files, gets collateral and prints; the
// packages below attestation decide.
package verify

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

// options are the command's flags.
type options struct {
	inputs
	snpFlags
	tdxFlags
	tpmFlags
	at     string
	strict bool
	json   bool

	now func() time.Time
}

// snpFlags are expectations that only SNP has.
type snpFlags struct {
	minTCB         []string
	vmpls          []uint
	allowDebug     bool
	allowMigration bool
	products       []string
}

// Command returns coco verify.
func Command() *cobra.Command {
	o := options{now: time.Now}
	cmd := &cobra.Command{
		Use:   "verify EVIDENCE",
		Short: "Verify the evidence of a confidential VM",
		Long: "Verifies evidence (\"-\" reads stdin): an SEV-SNP attestation report, with the host's certificate table\n" +
			"behind it or without, or a quote of Intel TDX, as bytes, hexadecimal digits or CoCo's JSON; a quote of a TPM\n" +
			"in CoCo's JSON; or the report of an Azure VM (HCL) with SEV-SNP. Prints what was checked, with the values\n" +
			"that were compared, then what was not checked because no value was given.\n\n" +
			"AMD's and Intel's roots are built in. The certificate of the chip's key comes from the evidence, from\n" +
			"--collateral, or with --fetch from the vendor; --collateral then keeps it. TDX needs TCB info, identity of\n" +
			"the quoting enclave, two lists of revoked certificates, and the certificates of the signer.\n\n" +
			"Exit status: 0 the evidence holds, 1 usage or files, 2 malformed or unsupported, 3 forged, 4 refused,\n" +
			"5 outdated, 6 unproven (collateral is missing or expired).",
		Example: "  coco verify report.bin --fetch --collateral ~/.cache/coco --reference-values rv.json",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	o.flags(cmd.Flags())
	return cmd
}

func (o *options) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.collateral, "collateral", nil,
		"file with certificates or a list of revoked ones, or a directory of them (repeatable)")
	f.BoolVar(&o.fetch, "fetch", false, "ask the vendor for collateral that is not there")
	f.BoolVar(&o.allowExpired, "allow-expired", false, "accept collateral whose validity has ended")
	f.StringVar(&o.initdata, "initdata", "", "initdata document (TOML) whose digest must be in the evidence")
	f.StringVar(&o.references, "reference-values", "", "allowed launch digests: a file of coco measure --reference-values")
	f.StringVar(&o.reportData, "report-data", "", "what the guest was asked to have signed, in hexadecimal")
	f.StringVar(&o.at, "at", "", "time at which collateral is judged, such as 2026-11-30T12:00:00Z (default now)")
	f.StringArrayVar(&o.minTCB, "min-tcb", nil, "lowest patch levels of a product: Genoa:snp=23,bootloader=9 (repeatable)")
	f.UintSliceVar(&o.vmpls, "vmpl", nil, "allowed privilege levels (default 0)")
	f.StringSliceVar(&o.products, "product", nil, "allowed products: Milan, Genoa, Turin (default all)")
	f.BoolVar(&o.allowDebug, "allow-debug", false, "accept a guest whose memory the host can read")
	f.BoolVar(&o.allowMigration, "allow-migration", false, "accept a guest that a migration agent can move")
	f.StringVar(&o.eventLog, "event-log", "", "TDX and TPM: event log that must lead to the registers (the CCEL area)")
	o.azureFlags.flags(f)
	o.tdxFlags.flags(f)
	o.tpmFlags.flags(f)
	f.BoolVar(&o.strict, "strict", false, "refuse when anything is left unchecked for want of a value")
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
}

// result is what --json prints.
type result struct {
	Verified bool                `json:"verified"`
	At       time.Time           `json:"at"`
	Claims   *attestation.Claims `json:"claims,omitempty"`
	Failure  *failure            `json:"failure,omitempty"`
}

type failure struct {
	attestation.Check
	Class attestation.Class `json:"class"`
	Means string            `json:"means"`
	Do    string            `json:"do"`
	Cause string            `json:"cause,omitempty"`
}

func (o *options) run(cmd *cobra.Command, path string) error {
	at, err := o.time()
	if err != nil {
		return err
	}
	claims, err := o.verify(cmd, path, at)
	f, failed := attestation.FailureOf(err)
	if err != nil && !failed {
		return err
	}
	out := result{Verified: !failed, At: at, Claims: claims}
	if failed {
		e := f.Code.Explain()
		out.Failure = &failure{Check: f.Check, Class: e.Class, Means: e.Means, Do: e.Do}
		if f.Cause != nil {
			out.Failure.Cause = f.Cause.Error()
		}
	}
	err = nil
	switch {
	case o.json:
		err = show.JSON(cmd.OutOrStdout(), out)
	case !failed:
		err = table(cmd.OutOrStdout(), claims)
	}
	if failed {
		return errors.Join(&Refusal{f}, err)
	}
	return err
}

// verify reads and judges. Flags that mean nothing for the evidence are refused.
func (o *options) verify(cmd *cobra.Command, path string, at time.Time) (*attestation.Claims, error) {
	ev, col, err := o.read(cmd, path, at)
	if ev.Type != "" {
		if err := checkFlags(cmd.Flags(), ev.Type); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	return o.judge(ev, col)
}

func (o *options) time() (time.Time, error) {
	if o.at == "" {
		return o.now(), nil
	}
	at, err := time.Parse(time.RFC3339, o.at)
	if err != nil {
		return at, fmt.Errorf("--at %q is no time such as 2026-11-30T12:00:00Z", o.at)
	}
	return at, nil
}

// expectations builds the demands from the flags. Without its flag a demand is undecided, unless --strict.
func (o *options) expectations() (snp.Expectations, error) {
	want := snp.Expectations{AllowDebug: o.allowDebug, AllowMigration: o.allowMigration}
	for _, v := range o.vmpls {
		if v > 3 {
			return want, fmt.Errorf("--vmpl %d: the levels are 0 to 3", v)
		}
		want.VMPLs = append(want.VMPLs, uint32(v))
	}
	for _, name := range o.products {
		p, err := product(name)
		if err != nil {
			return want, err
		}
		want.Source.Products = append(want.Source.Products, p)
	}
	for _, text := range o.minTCB {
		p, tcb, err := parseTCB(text)
		if err != nil {
			return want, err
		}
		if want.MinTCB == nil {
			want.MinTCB = map[snp.Product]snp.TCB{}
		}
		want.MinTCB[p] = tcb
	}
	var err error
	if want.Expectations, err = o.common(); err != nil {
		return want, err
	}
	if want.Measurements, err = o.measurements(); err != nil {
		return want, err
	}
	if !o.strict {
		want.Undecided = append(want.Undecided, snp.ItemTCB, snp.ItemRevocation)
	}
	return want, nil
}

// common are the expectations that all types of evidence have, but for the measurement.
func (o *options) common() (want attestation.Expectations, err error) {
	if want.InitData, err = o.initdataDigest(); err != nil {
		return want, err
	}
	if o.reportData != "" {
		if want.ReportData, err = hex.DecodeString(o.reportData); err != nil {
			return want, fmt.Errorf("--report-data is not hexadecimal: %w", err)
		}
	}
	if !o.strict {
		want.Undecided = []attestation.Item{
			attestation.ItemReportData, attestation.ItemInitData, attestation.ItemMeasurement,
		}
	}
	return want, nil
}

func product(name string) (snp.Product, error) {
	for _, p := range []snp.Product{snp.Milan, snp.Genoa, snp.Turin} {
		if strings.EqualFold(name, string(p)) {
			return p, nil
		}
	}
	return "", fmt.Errorf("product %q: known are Milan, Genoa and Turin", name)
}

// parseTCB reads lowest levels such as Genoa:snp=23,bootloader=9. Parts that are not named may have any level.
func parseTCB(text string) (snp.Product, snp.TCB, error) {
	var t snp.TCB
	name, levels, _ := strings.Cut(text, ":")
	p, err := product(name)
	if err != nil {
		return "", t, fmt.Errorf("--min-tcb %s: %w", text, err)
	}
	parts := map[string]*uint8{
		"fmc": &t.FMC, "bootloader": &t.Bootloader, "tee": &t.TEE, "snp": &t.SNP, "microcode": &t.Microcode,
	}
	for level := range strings.SplitSeq(levels, ",") {
		name, number, _ := strings.Cut(level, "=")
		n, err := strconv.ParseUint(number, 10, 8)
		to, ok := parts[name]
		if err != nil || !ok {
			const parts = "fmc, bootloader, tee, snp, microcode"
			return "", t, fmt.Errorf("--min-tcb %s: %q is not one of %s with =0 to =255", text, level, parts)
		}
		*to = uint8(n)
	}
	return p, t, nil
}

// Refusal is evidence that does not hold.
type Refusal struct{ failure *attestation.Failure }

// Error returns the failure's sentence.
func (r *Refusal) Error() string { return "evidence: " + r.failure.Error() }

// Unwrap returns the failure.
func (r *Refusal) Unwrap() error { return r.failure }

// ExitCode returns the exit status of the failure's class.
func (r *Refusal) ExitCode() int {
	switch r.failure.Code.Explain().Class {
	case attestation.Malformed, attestation.Unsupported:
		return 2
	case attestation.Forged:
		return 3
	case attestation.Refused:
		return 4
	case attestation.Outdated:
		return 5
	case attestation.Unproven:
		return 6
	}
	return 1
}

// table prints the checks that hold, and what was not checked.
func table(w io.Writer, c *attestation.Claims) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FIELD\tEXPECTED\tGOT\tELSE") // the code of a failure
	for _, k := range c.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", k.Field, short(k.Expected), short(k.Got), k.Code)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if len(c.Measurement) > 0 {
		fmt.Fprintf(w, "measurement  %s\n", c.Measurement)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Registers)) {
		fmt.Fprintf(w, "%-12s %s\n", name, c.Registers[name])
	}
	fmt.Fprintf(w, "init-data    %s\nreport-data  %s\n", c.InitData, c.ReportData)
	for _, i := range c.Undecided {
		fmt.Fprintf(w, "NOT CHECKED  %s: %s\n", i, missing[i])
	}
	return nil
}

// missing says which flag would have an item checked.
var missing = map[attestation.Item]string{
	attestation.ItemReportData:  "--report-data; without it the evidence may be an old one",
	attestation.ItemInitData:    "--initdata; without it the guest may have any policy and configuration",
	attestation.ItemMeasurement: "--reference-values; without it the guest may run any code",
	tpm.ItemKey:                 "--ak-ca or --ak-hash; without it any program may have made the quote",
	tpm.ItemSelection:           "--pcr-selection; without it the quote may cover other PCRs",
	snp.ItemTCB:                 "--min-tcb; without it the firmware may have known weaknesses",
	snp.ItemRevocation:          "--fetch or --collateral with AMD's list; without it the issuer may be revoked",
}

// short cuts a value that would break the table; --json has all of it.
func short(s string) string {
	if r := []rune(s); len(r) > 48 {
		return string(r[:47]) + "…"
	}
	return s
}
