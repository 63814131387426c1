// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// platform answers as the drivers of both TEEs do, with a field of the test's, and with faults.
type platform struct {
	value  []byte
	err    error
	change func(report []byte) // of the report, before it is returned
	asked  string
}

func (p *platform) ask(device string, command uintptr, arg unsafe.Pointer) error {
	p.asked = device
	if p.err != nil {
		return p.err
	}
	if p.change == nil {
		p.change = func([]byte) {}
	}
	switch {
	case device == "/dev/sev-guest" && command == snpGetReport:
		r := (*snpRequest)(arg)
		q, resp := (*snpReportRequest)(r.req), (*[snpResponse]byte)(r.resp)
		binary.LittleEndian.PutUint32(resp[4:], snpReportSize)
		binary.LittleEndian.PutUint32(resp[snpHead:], 3)
		copy(resp[snpHead+snpReportData:], q.data[:])
		copy(resp[snpHead+snpHostData:][:hostDataSize], p.value)
		p.change(resp[:])
	case device == "/dev/tdx_guest" && command == tdxGetReport:
		r := (*tdRequest)(arg)
		r.report[0] = tdReportType
		copy(r.report[tdReportData:], r.data[:])
		copy(r.report[tdConfigID:][:configIDSize], p.value)
		p.change(r.report[:])
	default:
		return unix.ENOTTY
	}
	return nil
}

// The sizes of the drivers' structures are part of the numbers of their commands, _IOC_SIZE.
func TestCommandsHaveTheSizesOfTheirArguments(t *testing.T) {
	for command, size := range map[uintptr]uintptr{
		snpGetReport: unsafe.Sizeof(snpRequest{}), tdxGetReport: unsafe.Sizeof(tdRequest{}),
	} {
		if got := command >> 16 & 0x3fff; got != size {
			t.Errorf("command %#x is for %d bytes, the structure has %d", command, got, size)
		}
	}
	if n := unsafe.Sizeof(snpReportRequest{}); n != 96 {
		t.Errorf("snp_report_req has %d bytes, not 96", n)
	}
}

func snpSys(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bus/platform/devices/sev-guest"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A kernel with the driver built in has no module of it. Any other failure to load one ends the search.
func TestTheDriverMayBeBuiltIn(t *testing.T) {
	for name, sys := range map[string]string{"sev_guest": snpSys(t), "tdx_guest": t.TempDir()} {
		for _, tc := range []struct {
			load error
			ok   bool
		}{{fmt.Errorf("kernel module: %w", errdefs.ErrNotFound), true}, {unix.EKEYREJECTED, false}} {
			asked := ""
			c := Config{
				Sys: sys, ask: (&platform{value: []byte{1}}).ask,
				Load: func(m string, _ ...string) error { asked = m; return tc.load },
			}
			if _, err := c.readField(); (err == nil) != tc.ok || asked != name {
				t.Errorf("%s: loaded %q with %v: %v", name, asked, tc.load, err)
			}
		}
	}
}

func TestTheFieldIsReadFromTheOwnReport(t *testing.T) {
	digest := sha512.Sum512([]byte("x"))
	for _, tc := range []struct {
		name, device, field string
		sys                 string
		size                int
	}{
		{"SNP", "/dev/sev-guest", "HOSTDATA", snpSys(t), 32},
		{"TDX", "/dev/tdx_guest", "MRCONFIGID", t.TempDir(), 48},
	} {
		t.Run(tc.name, func(t *testing.T) {
			read := func(p *platform) (field, error) {
				return Config{Sys: tc.sys, Load: func(string, ...string) error { return nil }, ask: p.ask}.readField()
			}
			p := &platform{value: digest[:]}
			f, err := read(p)
			if err != nil || p.asked != tc.device || f.name != tc.field || !bytes.Equal(f.value, digest[:tc.size]) {
				t.Fatalf("asked %s: %+v, %v", p.asked, f, err)
			}
			if !f.fits(digest[:]) || f.zero() {
				t.Error("a longer digest does not fit, or the field counts as zero")
			}
			short := sha256.Sum256([]byte("y"))
			if f, err = read(&platform{value: short[:]}); err != nil || !f.fits(short[:]) || f.fits(digest[:]) {
				t.Errorf("a digest of 32 bytes: %+v, %v", f, err)
			}
			if f, err = read(&platform{}); err != nil || !f.zero() {
				t.Errorf("no initdata: %+v, %v", f, err)
			}
			nonce := tdReportData
			if tc.name == "SNP" {
				nonce = snpHead + snpReportData
			}
			for want, p := range map[string]*platform{
				"input/output error": {err: unix.EIO},
				"nonce":              {change: func(r []byte) { r[nonce+5] ^= 1 }},
				tc.name:              {change: func(r []byte) { clear(r) }}, // a driver that has written nothing
			} {
				if f, err := read(p); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %+v, %v", want, f, err)
				}
			}
		})
	}
	for want, change := range map[string]func(r []byte){
		"status 0x16": func(r []byte) { r[0] = 0x16 },
		"bytes":       func(r []byte) { binary.LittleEndian.PutUint32(r[4:], snpReportSize-1) },
		"version 1":   func(r []byte) { r[snpHead] = 1 },
	} {
		if _, err := hostData((&platform{change: change}).ask, [nonceSize]byte{1}); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// In a TEE the report decides, whatever the command line says.
func TestEstablishInATEE(t *testing.T) {
	good := document(t, head+"'policy.coco' = '"+smallest+"'\n")
	bare := document(t, head+"'aa.toml' = ''\n")
	for _, tc := range []struct {
		name  string
		disk  []byte // nil: there is none
		value []byte // of the field
		err   error  // of the driver
		code  Code
		has   string // "policy", "closed" or ""
	}{
		{name: "the initdata of the launch", disk: good.Disk(), value: good.Digest(), has: "policy"},
		{name: "initdata without a policy", disk: bare.Disk(), value: bare.Digest(), has: "closed"},
		{name: "other initdata", disk: bare.Disk(), value: good.Digest(), code: Mismatch},
		{name: "initdata where the launch has none", disk: good.Disk(), code: Mismatch},
		{name: "none where the launch has some", value: good.Digest(), code: Missing},
		{name: "none", has: "closed"},
		{
			name: "one bit less", disk: good.Disk(), value: append([]byte{good.Digest()[0] ^ 1}, good.Digest()[1:]...),
			code: Mismatch,
		},
		{name: "no report", disk: good.Disk(), value: good.Digest(), err: errors.New("no answer"), code: Unverified},
	} {
		sys, disks := snpSys(t), map[string]string(nil)
		if tc.disk != nil {
			disks = map[string]string{"vda": "initdata"}
		}
		block := sysfs(t, disks, nil)
		if err := os.MkdirAll(filepath.Join(block, "class/block"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(block, "class"), filepath.Join(sys, "class")); err != nil {
			t.Fatal(err)
		}
		c := Config{
			Confidential: true, IsBound: true, Bound: bound(bare), Sys: sys,
			Load: func(string, ...string) error { return nil }, ask: (&platform{value: tc.value, err: tc.err}).ask,
			dev: t.TempDir(),
		}
		if err := os.WriteFile(filepath.Join(c.dev, "vda"), tc.disk, 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := Establish(t.Context(), c)
		has := ""
		if e != nil {
			has = "closed"
			if !strings.Contains(e.Forward(1).Error(), "no-policy") {
				has = "policy"
			}
		}
		if codeOf(err) != tc.code || has != tc.has {
			t.Errorf("%s: code %q (%v), has %q; want %q, %q", tc.name, codeOf(err), err, has, tc.code, tc.has)
		}
	}
}
