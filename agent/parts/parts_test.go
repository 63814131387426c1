// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/image/verity/partlist"
)

var errFake = errors.New("no device-mapper here")

// image is a guest with a list of parts and one disk, which is /dev/null under a name of its own.
func image(t *testing.T, serial string, size uint64) *Parts {
	t.Helper()
	dir := t.TempDir()
	list := filepath.Join(dir, "parts")
	node := filepath.Join(dir, "sys/class/block/null")
	if err := os.MkdirAll(node, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		list: string(partlist.Write([]partlist.Line{
			{Name: contract.PartTrust, RootHash: strings.Repeat("0a", 32), Blocks: 2},
		})),
		filepath.Join(node, "serial"): serial, filepath.Join(node, "dev"): "254:0\n",
		filepath.Join(node, "size"): strconv.FormatUint(size/512, 10) + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Parts{List: list, Dir: filepath.Join(dir, "mounts"), Disk: disk.Finder{Sys: filepath.Join(dir, "sys")}}
}

func TestAPartIsOpenedWithTheHashOfTheList(t *testing.T) {
	p := image(t, contract.PartTrust, 3*verity.BlockSize)
	opened := 0
	p.verify = func(name string, v verity.Params, number string) (string, func() error, error) {
		opened++
		if name != contract.PartTrust || v.Hex() != strings.Repeat("0a", 32) || v.DataBlocks != 2 || number != "254:0" {
			t.Errorf("verify(%s, %+v, %s)", name, v, number)
		}
		return "", nil, errFake
	}
	for range 2 { // a failure is not kept
		if _, err := p.Open(t.Context(), contract.PartTrust); !errors.Is(err, errFake) {
			t.Errorf("Open() = %v", err)
		}
	}
	if opened != 2 {
		t.Errorf("the device was opened %d times", opened)
	}
}

func TestAnImageThatIsNoEROFSIsClosedAgain(t *testing.T) {
	p := image(t, contract.PartTrust, 3*verity.BlockSize)
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, make([]byte, 2*verity.BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	closed := 0
	p.verify = func(string, verity.Params, string) (string, func() error, error) {
		return file, func() error { closed++; return nil }, nil
	}
	if dir, err := p.Open(t.Context(), contract.PartTrust); err == nil || closed != 1 {
		t.Errorf("Open() = %q, %v, closed %d times", dir, err, closed)
	}
}

func TestWhatCannotBeOpened(t *testing.T) {
	for name, tc := range map[string]struct {
		parts *Parts
		part  string
		want  string
	}{
		"a part that the image lacks": {image(t, "part-rego", 1<<20), "part-rego", "the image was made without it"},
		"no disk":                     {image(t, "initdata", 1<<20), contract.PartTrust, "the host has not attached it"},
		"a small disk": {
			image(t, contract.PartTrust, 2*verity.BlockSize), contract.PartTrust, "its disk has 8192 bytes",
		},
	} {
		_, err := tc.parts.Open(t.Context(), tc.part)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.part) {
			t.Errorf("%s: Open() = %v, want %q", name, err, tc.want)
		}
	}
	p := image(t, contract.PartTrust, 1<<20)
	if err := os.WriteFile(p.List, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(t.Context(), contract.PartTrust); err == nil {
		t.Error("a list that cannot be read was believed")
	}
}
