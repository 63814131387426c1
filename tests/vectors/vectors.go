// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package vectors finds known answers for tests. The synthetic ones are our own data and lie here.
// Published ones stay in a folder outside of the repository: the one that COCO_VECTORS names, else
// ../shared/vectors beside the repository. Tests that need an absent folder skip with that reason.
package vectors

import (
	"embed"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

//go:embed synthetic
var synthetic embed.FS

// Dir returns the folder with the published vectors, or skips the test.
func Dir(tb testing.TB) fs.FS {
	tb.Helper()
	dir := os.Getenv("COCO_VECTORS")
	if dir == "" {
		_, file, _, ok := runtime.Caller(0)
		if !ok {
			tb.Skip("no published vectors: COCO_VECTORS is not set and the source's place is unknown")
		}
		dir = filepath.Join(filepath.Dir(file), "..", "..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
		tb.Skipf("no published vectors: set COCO_VECTORS to their folder (%v)", err)
	}
	return os.DirFS(dir)
}

// Synthetic returns our own vectors, which are always there.
func Synthetic(tb testing.TB) fs.FS {
	tb.Helper()
	sub, err := fs.Sub(synthetic, "synthetic")
	if err != nil {
		tb.Fatal(err)
	}
	return sub
}

// Section is a metadata section of a case without firmware.
type Section struct {
	GPA  uint32 `json:"gpa"`
	Size uint32 `json:"size"`
	Type uint32 `json:"type"`
}

// Case is one known answer for SEV-SNP, SEV-ES or SEV (README.md of the vectors describes the fields).
type Case struct {
	Name         string    `json:"name"`
	Mode         string    `json:"mode"`
	VMM          string    `json:"vmm"`
	Firmware     string    `json:"ovmf"`
	FirmwareHash string    `json:"ovmf_hash"`
	Sections     []Section `json:"ovmf_sections"`
	APEIP        uint32    `json:"ap_eip"`
	HashTableGPA uint32    `json:"hash_table_gpa"`
	Kernel       *string   `json:"kernel"`
	Initrd       *string   `json:"initrd"`
	KernelSHA256 string    `json:"kernel_sha256"`
	InitrdSHA256 string    `json:"initrd_sha256"`
	Append       string    `json:"append"`
	VCPUs        int       `json:"vcpus"`
	Type         string    `json:"vcpu_type"`
	Signature    uint32    `json:"vcpu_sig"`
	Features     uint64    `json:"features"`
	Expect       string    `json:"expect"`
}

// Cases reads a cases.json.
func Cases(tb testing.TB, dir fs.FS, path string) []Case {
	tb.Helper()
	var out []Case
	if err := json.Unmarshal(Read(tb, dir, path), &out); err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	return out
}

// Read returns a file of a folder of vectors.
func Read(tb testing.TB, dir fs.FS, path string) []byte {
	tb.Helper()
	b, err := fs.ReadFile(dir, path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Hex decodes a constant.
func Hex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
