// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sev

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// igvmCreateOptions are the flags of coco measure igvm create.
type igvmCreateOptions struct {
	boot                 input.Boot
	out, firmware, vmsa  string
	model, sig, features string
	vcpus                int
	blobs                []string
	id                   idOptions
}

func createCommand() *cobra.Command {
	var o igvmCreateOptions
	cmd := &cobra.Command{
		Use:   "create --out FILE",
		Short: "Write an IGVM file for Cloud Hypervisor's SNP launch",
		Long: "Writes firmware, blobs and the boot processor's context as an IGVM file, and prints the digest that\n" +
			"Cloud Hypervisor on KVM launches it with. --kernel, --initrd and --append fill the firmware's page of\n" +
			"kernel hashes; --blob places bytes in guest memory.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			digest, err := o.run()
			if err != nil {
				return fmt.Errorf("measure igvm create: %w", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.out, "out", "", "file to write")
	f.StringVar(&o.firmware, "firmware", "", "firmware or boot stub of up to 4 MiB, placed to end at 4 GiB")
	f.StringVar(&o.boot.Kernel, "kernel", "", "kernel whose hash the firmware will check")
	f.StringVar(&o.boot.Initrd, "initrd", "", "initrd whose hash the firmware will check")
	f.StringVar(&o.boot.Cmdline, "append", "", "kernel command line whose hash the firmware will check")
	o.boot.SumFlags(cmd)
	f.StringArrayVar(&o.blobs, "blob", nil, "GPA=FILE: bytes at a guest address")
	f.StringVar(&o.vmsa, "vmsa", "", "file with the boot processor's save area; without it the reset vector")
	f.StringVar(&o.model, "cpu-model", "", "model whose signature the boot processor has in RDX")
	f.StringVar(&o.sig, "vcpu-sig", "", "that signature itself")
	f.StringVar(&o.features, "features", "0x1", "SEV_FEATURES of the guest")
	f.IntVar(&o.vcpus, "vcpus", 1, "number of vCPUs, for the digest and the ID block")
	o.id.flags(cmd)
	return cmd
}

func (o *igvmCreateOptions) run() (digest string, err error) {
	if o.out == "" {
		return "", errors.New("give --out")
	}
	if err := o.boot.Check(); err != nil {
		return "", err
	}
	c, err := o.contents()
	if err != nil {
		return "", err
	}
	raw, launch, err := o.compose(c)
	if err != nil {
		return "", err
	}
	d, err := snp.MeasureIGVM(launch, nil)
	if err != nil {
		return "", err
	}
	id, err := o.id.make(d)
	if err != nil {
		return "", err
	}
	if id != nil { // the digest does not cover the ID block, so it stays
		block, errB := base64.StdEncoding.DecodeString(id.Block)
		auth, errA := base64.StdEncoding.DecodeString(id.Auth)
		if err := errors.Join(errA, errB); err != nil {
			return "", err
		}
		c.IDBlock, c.IDAuth = block, auth
		if raw, _, err = o.compose(c); err != nil {
			return "", err
		}
	}
	return d.String(), os.WriteFile(o.out, raw, 0o644)
}

func (o *igvmCreateOptions) compose(c snp.IGVMContents) ([]byte, snp.IGVMLaunch, error) {
	raw, err := snp.ComposeIGVM(c)
	if err != nil {
		return nil, snp.IGVMLaunch{}, err
	}
	f, err := igvm.Parse(raw)
	return raw, snp.IGVMLaunch{File: f, VCPUs: o.vcpus}, err
}

func (o *igvmCreateOptions) contents() (c snp.IGVMContents, err error) {
	policy, err := strconv.ParseUint(o.id.policy, 0, 64)
	if err != nil {
		return c, fmt.Errorf("--policy %q is not a 64-bit number", o.id.policy)
	}
	c.Policy = idblock.Policy(policy)
	if err := c.Policy.CheckProduction(); err != nil && !(o.id.allowDebug && errors.Is(err, idblock.ErrDebug)) {
		return c, fmt.Errorf("--policy: %w", err)
	}
	if c.Features, err = strconv.ParseUint(o.features, 0, 64); err != nil {
		return c, fmt.Errorf("--features %q is not a 64-bit number", o.features)
	}
	if err := o.processor(&c); err != nil {
		return c, err
	}
	if o.firmware != "" {
		if c.Firmware, err = input.ReadLimited(o.firmware, input.MaxFirmware); err != nil {
			return c, err
		}
	}
	for _, b := range o.blobs {
		gpa, path, ok := strings.Cut(b, "=")
		at, err := strconv.ParseUint(gpa, 0, 64)
		if !ok || err != nil {
			return c, fmt.Errorf("--blob %q is not of the form GPA=FILE", b)
		}
		data, err := input.ReadLimited(path, maxIGVM)
		if err != nil {
			return c, err
		}
		c.Blobs = append(c.Blobs, snp.Blob{Name: path, GPA: at, Data: data})
	}
	if c.Firmware == nil && c.Blobs == nil {
		return c, errors.New("give --firmware or --blob: the file would be empty")
	}
	var g errgroup.Group
	hashes := o.boot.Hash(&g)
	if err := g.Wait(); err != nil {
		return c, err
	}
	c.Hashes = hashes()
	return c, nil
}

// processor fills in the boot processor's context.
func (o *igvmCreateOptions) processor(c *snp.IGVMContents) (err error) {
	given := 0
	for _, s := range []string{o.vmsa, o.model, o.sig} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("give one of --cpu-model, --vcpu-sig and --vmsa")
	case o.vmsa != "":
		c.Context, err = input.ReadLimited(o.vmsa, igvm.PageSize)
	case o.model != "":
		c.Signature, err = snp.ModelSignature(o.model)
	default:
		var s uint64
		if s, err = strconv.ParseUint(o.sig, 0, 32); err != nil {
			return fmt.Errorf("--vcpu-sig %q is not a 32-bit number", o.sig)
		}
		c.Signature = uint32(s)
	}
	return err
}
