// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Cache keeps tables in a directory. The key covers all inputs of the tables: the content of the QEMU binary, the
// arguments, the firmware's effects and the names of the files. The content of a wrapper script does not identify the
// QEMU that it executes, so its tables are read each time. The cache is optional: tables that are damaged or could not
// be written are read from QEMU again.
type Cache struct{ Dir string } // "": nothing is kept

// Read returns cached tables, or calls Read and caches its result.
func (c Cache) Read(ctx context.Context, argv []string, f Firmware, names ...string) (map[string][]byte, error) {
	if c.Dir == "" {
		return Read(ctx, argv, f, names...)
	}
	path, err := c.path(argv, f, names)
	if err != nil {
		return nil, err
	}
	if files, ok := load(path); ok {
		return files, nil
	}
	files, itself, err := run(ctx, argv, f, names)
	if err != nil {
		return nil, err
	}
	if itself {
		_ = store(path, files) // the next call reads them again
	}
	return files, nil
}

func (c Cache) path(argv []string, f Firmware, names []string) (string, error) {
	bin, err := os.Open(argv[0])
	if err != nil {
		return "", err
	}
	defer bin.Close()
	h := sha256.New()
	if _, err := io.Copy(h, bin); err != nil {
		return "", fmt.Errorf("read %s: %w", argv[0], err)
	}
	names = slices.Sorted(slices.Values(names))
	if err := json.NewEncoder(h).Encode([]any{argv[1:], f, names}); err != nil {
		return "", err
	}
	return filepath.Join(c.Dir, hex.EncodeToString(h.Sum(nil))+".json"), nil
}

// kept is the form of a file of the cache.
type kept struct {
	Sum   []byte            `json:"sha256"` // over the encoded files
	Files map[string][]byte `json:"files"`
}

func sum(files map[string][]byte) ([]byte, error) {
	text, err := json.Marshal(files) // keys are sorted
	s := sha256.Sum256(text)
	return s[:], err
}

func load(path string) (map[string][]byte, bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	var k kept
	if err := json.NewDecoder(io.LimitReader(f, 4*maxFile)).Decode(&k); err != nil {
		return nil, false
	}
	want, err := sum(k.Files)
	return k.Files, err == nil && slices.Equal(want, k.Sum)
}

func store(path string, files map[string][]byte) (err error) {
	s, err := sum(files)
	if err != nil {
		return err
	}
	text, err := json.Marshal(kept{s, files})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone after the rename
	if _, err := tmp.Write(text); err != nil {
		_ = tmp.Close() // already failed
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
