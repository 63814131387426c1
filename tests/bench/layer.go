// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coco-shim/coco/image/layer"
)

const (
	layerFiles = 2000
	layerBytes = 500_000_000
)

// benchLayer is figure 6: a layer of 500 MB in 2000 files becomes EROFS and a hash tree, in a process
// of its own whose peak memory the kernel tells.
func benchLayer(ctx context.Context, b *bench) ([]Figure, error) {
	tree := filepath.Join(b.dir, "tree")
	if err := makeTree(tree); err != nil {
		return nil, err
	}
	var speed, peak, copied []float64
	for i := range b.runs {
		cache := filepath.Join(b.dir, "layers-"+strconv.Itoa(i))
		cmd := exec.CommandContext(ctx, os.Args[0], "-build-layer", tree, "-build-cache", cache)
		cmd.Stderr = os.Stderr
		start := time.Now()
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("build layer: %w", err)
		}
		speed = append(speed, layerBytes/1e6/time.Since(start).Seconds())
		ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			return nil, errors.New("no resource usage of the builder")
		}
		peak = append(peak, float64(ru.Maxrss)/1024)
		s, err := copyTree(tree, filepath.Join(b.dir, "copy"))
		if err != nil {
			return nil, err
		}
		copied = append(copied, layerBytes/1e6/s.Seconds())
		if err := os.RemoveAll(cache); err != nil {
			return nil, err
		}
	}
	f := against("layer", "build of a 500 MB layer (EROFS + dm-verity)", "MB/s", "≥ 150 MB/s", speed,
		"its bytes copied to one file", copied)
	return []Figure{f, alone("layer", "peak memory of the builder", "MiB", "≤ 64", peak...)}, nil
}

// buildLayer is the child's part.
func buildLayer(tree, cache string) error {
	c, err := layer.New(cache)
	if err != nil {
		return err
	}
	l, err := c.Open(context.Background(), layer.Source{Kind: layer.Dir, Path: tree})
	if err != nil {
		return err
	}
	return l.Close()
}

func makeTree(dir string) error {
	rng := rand.New(rand.NewChaCha8([32]byte{1}))
	buf := make([]byte, layerBytes/layerFiles)
	for i := range layerFiles {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%50))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for j := 0; j+8 <= len(buf); j += 8 {
			v := rng.Uint64()
			for k := range 8 {
				buf[j+k] = byte(v >> (8 * k))
			}
		}
		if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), buf, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copyTree appends every file of the tree to one file and syncs nothing, as the builder does.
func copyTree(tree, to string) (took time.Duration, err error) {
	start := time.Now()
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close(), os.Remove(to)) }()
	err = filepath.WalkDir(tree, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer in.Close()
		// Hidden behind plain interfaces, so that the kernel cannot shortcut the copy.
		_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 1<<20))
		return err
	})
	return time.Since(start), err
}
