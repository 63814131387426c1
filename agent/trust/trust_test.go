// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/engine"
)

const head = "version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n"

func document(t testing.TB, text string) *initdata.Document {
	t.Helper()
	d, err := initdata.FromText([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// judge is Judge with the binding of the plain platform.
func judge(disk []byte, bound string) (*engine.Engine, error) {
	b, err := CommandLine(bound)
	if err != nil {
		return nil, err
	}
	return Judge(bytes.NewReader(disk), b)
}

func bound(d *initdata.Document) string { return fmt.Sprintf("%s:%x", d.Algorithm, d.Digest()) }

func codeOf(err error) Code {
	var e *Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Code
}

// smallest is the smallest policy.
const smallest = `{"apiVersion":"` + policy.APIVersion + `","pod":{"hostname":{"is":"a"}}}`

func TestJudge(t *testing.T) {
	good := document(t, head+"'policy.coco' = '"+smallest+"'\n")
	none := document(t, head+"'aa.toml' = ''\n")
	flipped := good.Disk()
	flipped[60] ^= 1
	long := good.Disk()
	binary.LittleEndian.PutUint64(long[8:], initdata.MaxCompressed+1)
	for _, tc := range []struct {
		name  string
		disk  []byte
		bound string
		code  Code
		has   bool
	}{
		{"a policy", good.Disk(), bound(good), "", true},
		{"initdata without a policy", none.Disk(), bound(none), "", false},
		{"other initdata", none.Disk(), bound(good), Mismatch, false},
		{"a flipped bit", flipped, bound(good), Format, false},
		{"another algorithm", good.Disk(), strings.Replace(bound(good), "sha256", "sha384", 1), Mismatch, false},
		{"a digest that is cut", good.Disk(), bound(good)[:len(bound(good))-2], Mismatch, false},
		{"no digest", good.Disk(), "", Unreadable, false},
		{"no digits", good.Disk(), "sha256:", Unreadable, false},
		{"too long", long, bound(good), Format, false},
		{"an empty disk", nil, bound(good), Format, false},
		{"a disk of zeros", make([]byte, 512), bound(good), Format, false},
		{"a disk that is cut", good.Disk()[:80], bound(good), Format, false},
		{"a policy with another spacing", document(t, head+"'policy.coco' = ' "+smallest+"'\n").Disk(), "", BadPolicy, false},
	} {
		b := tc.bound
		if tc.code == BadPolicy {
			d, err := initdata.FromDisk(bytes.NewReader(tc.disk))
			if err != nil {
				t.Fatal(err)
			}
			b = bound(d)
		}
		e, err := judge(tc.disk, b)
		if codeOf(err) != tc.code || (e != nil) != tc.has || (err != nil) != errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: Judge = %v, %v, want code %q", tc.name, e, err, tc.code)
		}
	}
}

// sysfs has disks by name with their serials.
func sysfs(t *testing.T, virtio, scsi map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		file := filepath.Join(dir, "class/block", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range virtio {
		write(name+"/serial", s)
	}
	for name, s := range scsi {
		write(name+"/device/vpd_pg80", "\x00\x80\x00"+string(rune(len(s)))+s)
	}
	return dir
}

func TestEstablish(t *testing.T) {
	one := map[string]string{"vda": "initdata", "vdb": "layer"}
	for _, tc := range []struct {
		name         string
		virtio, scsi map[string]string
		bound, tee   bool
		code         Code
		closed       bool
	}{
		{name: "plain, nothing", virtio: one},
		{name: "plain, bound, no disk", bound: true, scsi: map[string]string{"sda": "layer"}, code: Missing},
		{name: "two disks on two buses", bound: true, virtio: one, scsi: map[string]string{"sda": "initdata"}, code: Twice},
		{
			name: "a disk that cannot be opened", bound: true, virtio: map[string]string{"none": "initdata\n"},
			code: Unreadable,
		},
		{name: "a TEE without initdata", tee: true, closed: true},
		{name: "a TEE that is said to be bound", tee: true, bound: true, closed: true},
		{name: "a TEE with initdata", tee: true, bound: true, virtio: one, code: Unreadable}, // there is no such device
		{name: "a TEE with two", tee: true, virtio: map[string]string{"vda": "initdata", "vdb": "initdata"}, code: Twice},
	} {
		e, err := Establish(t.Context(), Config{
			Confidential: tc.tee, Bound: "sha256:00", IsBound: tc.bound, Sys: sysfs(t, tc.virtio, tc.scsi),
			Load: func(string, ...string) error { return nil },
			ask:  (&platform{}).ask,
		})
		if codeOf(err) != tc.code || (e != nil) != tc.closed {
			t.Errorf("%s: Establish = %v, %v, want code %q, closed %t", tc.name, e, err, tc.code, tc.closed)
		}
	}
}

// FuzzJudge: nothing is trusted but the bytes that the launch is bound to.
func FuzzJudge(f *testing.F) {
	good := document(f, head+"'policy.coco' = '"+smallest+"'\n")
	f.Add(good.Disk())
	f.Add([]byte("initdata"))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		if e, err := judge(b, bound(good)); e != nil {
			d, derr := initdata.FromDisk(bytes.NewReader(b))
			if err != nil || derr != nil || !bytes.Equal(d.Text, good.Text) {
				t.Errorf("trusted %q: %v", b, err)
			}
		}
	})
}
