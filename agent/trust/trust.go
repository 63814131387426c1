// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trust finds out, once, before the agent serves requests, by which policy it serves them.
//
// The pod's owner writes initdata; the host brings it on a disk. Establish finds that disk by its serial, reads it
// once into bounded memory and compares the digest of what it has read with the digest that the launch is bound to. In
// a TEE that is a field of the guest's own report. On the plain platform no hardware measures anything: the digest on
// the kernel command line stands in, which the host chooses as well. It is called a rehearsal, because it shows that
// the parts fit together and protects from nobody.
//
// A part that does not fit is an *Error with a stable code, and the agent answers nothing but health checks with it.
// The platform is found from the processor; the command line cannot lower it. In a TEE the policy is closed if there is
// no initdata or none in it.
//
// On platform vtpm, where the guest has a TPM that the host runs, initdata is measured instead of compared. The policy
// is closed there too without initdata.
package trust

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/tpm2"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/engine"
)

// Code says why a guest trusts nothing. Codes are stable; docs/policy.md has them as a table.
type Code string

// Codes of errors.
const (
	Missing    Code = "initdata-missing"    // the launch is bound to initdata, and there is no disk with any
	Twice      Code = "initdata-twice"      // two disks claim to be it
	Unreadable Code = "initdata-unreadable" // the disk, or what the launch is bound to, cannot be read
	Format     Code = "initdata-format"     // too long, no gzip, no TOML of the format, an unknown version
	Mismatch   Code = "initdata-mismatch"   // its digest is not the one that the launch is bound to
	Unverified Code = "initdata-unverified" // the platform's report cannot be read
	BadPolicy  Code = "policy-invalid"      // its policy.coco is not a valid policy
)

// Error is why the guest trusts nothing.
type Error struct {
	Code Code
	err  error
}

// Error returns one sentence with the code.
func (e *Error) Error() string { return fmt.Sprintf("guest trusts nothing [%s]: %v", e.Code, e.err) }

// Unwrap returns the cause, and the class that the host gets.
func (e *Error) Unwrap() []error { return []error{e.err, errdefs.ErrPermissionDenied} }

func fail(c Code, format string, args ...any) error { return &Error{c, fmt.Errorf(format, args...)} }

// Config says where the guest runs, what its kernel command line has, and how to load a driver.
type Config struct {
	Confidential bool   // the guest runs in a TEE
	Bound        string // value of contract.ParamInitdata on the kernel command line
	IsBound      bool   // that parameter is there
	Sys          string // sysfs
	// Load loads a kernel module. It returns errdefs.ErrNotFound for one that the guest image does not have.
	Load func(module string, params ...string) error
	// Keep gets the initdata once it is what the launch is bound to, or was measured; nil: nobody needs it.
	Keep func(*initdata.Document)

	ask    ask                                          // replaced in tests
	extend func(pcr int, d [tpm2.DigestSize]byte) error // likewise; nil: of the guest's TPM
	dev    string                                       // directory of devices; "/dev" but in tests
}

// Establish returns the engine of the pod's policy, or nil on the plain platform for a pod that has none. On platform
// vtpm it measures the initdata first.
func Establish(ctx context.Context, c Config) (*engine.Engine, error) {
	if !c.Confidential && HasTPM(c.Sys) {
		return c.measure(ctx)
	}
	if !c.Confidential && !c.IsBound {
		return nil, nil
	}
	bound, empty, err := c.binding()
	if err != nil {
		return nil, err
	}
	e, err := c.judgeDisk(ctx, bound, empty)
	if e == nil && err == nil && c.Confidential {
		e = engine.New(nil) // initdata without a policy
	}
	return e, err
}

// judgeDisk finds the disk with the initdata and judges what it has. Where the launch is bound to nothing, empty, there
// may be none.
func (c Config) judgeDisk(ctx context.Context, bound Bound, empty bool) (*engine.Engine, error) {
	disks, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case len(disks) > 1:
		return nil, fail(Twice, "the disks %s have the serial %q, and one may", strings.Join(disks, ", "), serial)
	case len(disks) == 0 && empty:
		return engine.New(nil), nil
	case len(disks) == 0:
		return nil, fail(Missing, "no disk has the serial %q", serial)
	}
	f, err := os.Open(disks[0])
	if err != nil {
		return nil, &Error{Unreadable, err}
	}
	defer f.Close()
	return Judge(f, func(d *initdata.Document) error {
		err := bound(d)
		if err == nil && c.Keep != nil {
			c.Keep(d)
		}
		return err
	})
}

// Bound refuses initdata that is not what the launch is bound to.
type Bound func(d *initdata.Document) error

// binding finds what the launch is bound to. empty says that it is bound to no initdata.
func (c Config) binding() (bound Bound, empty bool, err error) {
	if !c.Confidential {
		bound, err = CommandLine(c.Bound)
		return bound, false, err
	}
	f, err := c.readField()
	if err != nil {
		return nil, false, &Error{Unverified, err}
	}
	return f.binds, f.zero(), nil
}

func (f field) binds(d *initdata.Document) error {
	if f.fits(d.Digest()) {
		return nil
	}
	return fail(Mismatch, "the disk has initdata with the digest %s:%x, and %s is %x", d.Algorithm, d.Digest(), f.name,
		f.value)
}

// CommandLine is the binding of the plain platform, a rehearsal: the value of contract.ParamInitdata, "ALGORITHM:HEX".
func CommandLine(value string) (Bound, error) {
	algorithm, digits, _ := strings.Cut(value, ":")
	want, err := hex.DecodeString(digits)
	if err != nil || len(want) == 0 {
		return nil, fail(Unreadable, "the kernel command line has %s=%.80q, want ALGORITHM:HEX", contract.ParamInitdata,
			value)
	}
	return func(d *initdata.Document) error {
		if d.Algorithm == algorithm && bytes.Equal(d.Digest(), want) {
			return nil
		}
		return fail(Mismatch, "the disk has initdata with the digest %s:%x, the launch is bound to %.200s (rehearsal)",
			d.Algorithm, d.Digest(), value)
	}, nil
}

// Judge reads initdata from its disk, once, and returns the engine of its policy if the launch is bound to it; nil if
// it has no policy.
func Judge(r io.Reader, bound Bound) (*engine.Engine, error) {
	d, err := initdata.FromDisk(r)
	if err != nil {
		return nil, &Error{Format, err}
	}
	if err := bound(d); err != nil {
		return nil, err
	}
	text, ok := d.Data[policy.FileName]
	if !ok {
		return nil, nil
	}
	p, err := policy.Load([]byte(text))
	if err != nil {
		return nil, &Error{BadPolicy, err}
	}
	return engine.New(p), nil
}

// serial is what the disk with initdata has, and no other one.
const serial = "initdata"

// address is where the host puts it on the SCSI bus: it is the first disk. A second one elsewhere on this bus is not
// looked for, and nothing reads it.
const address = "0:0"

// drivers of the disks that a guest may have at boot; virtio_blk shows its disks when it is loaded.
var drivers = []string{"virtio_scsi", "sd_mod", "virtio_blk"}

// load loads a driver. A module that the guest image does not have is no error: the driver may be built into the
// kernel, and if it is not, the device that it serves is missing.
func (c Config) load(module string) error {
	if err := c.Load(module); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// find returns the paths of the disks with the serial.
func (c Config) find(ctx context.Context) ([]string, error) {
	for _, m := range drivers {
		if err := c.load(m); err != nil {
			return nil, &Error{Unreadable, err}
		}
	}
	finder := disk.Finder{Sys: c.Sys}
	if _, err := os.Stat(filepath.Join(c.Sys, "class/scsi_host/host0")); err == nil {
		at, err := finder.SCSI(address)
		if err == nil {
			_, err = finder.Wait(ctx, at)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fail(Unreadable, "SCSI disk %s: %w", address, err)
		}
	}
	dir := filepath.Join(c.Sys, "class/block")
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, &Error{Unreadable, err}
	}
	var out []string
	for _, d := range all {
		if disk.Serial(filepath.Join(dir, d.Name())) == serial {
			out = append(out, filepath.Join(cmp.Or(c.dev, "/dev"), d.Name()))
		}
	}
	slices.Sort(out)
	return out, nil
}
