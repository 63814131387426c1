// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command layerbench measures the building of a layer: it makes a directory of a given size, has a
// fresh process turn it into an EROFS image with its hash tree, and prints one line of JSON:
// MB/s and the peak memory of that process. For comparison it also measures a plain copy of the data
// to one file in the same place.
//
//	go run ./image/layer/internal/layerbench -mib 500
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/image/layer"
)

// result is what is printed.
type result struct {
	MiB        int     `json:"mib"`
	Files      int     `json:"files"`
	MBps       float64 `json:"mb_per_s"`
	Seconds    float64 `json:"seconds"`
	PeakRSSKiB int64   `json:"peak_rss_kib"`
	CPUSeconds float64 `json:"cpu_seconds"`
	CopyMBps   float64 `json:"copy_mb_per_s"`
	HitMillis  float64 `json:"cache_hit_ms"` // opening the same layer again
}

func main() {
	mib := flag.Int("mib", 500, "size of the layer")
	dir := flag.String("dir", "", "where to work (default: a temporary directory)")
	child := flag.String("child", "", "internal: the directory to build in")
	flag.Parse()
	err := error(nil)
	if *child != "" {
		if err = build(*child); err == nil {
			err = peak()
		}
	} else {
		err = run(*mib, *dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "layerbench:", err)
		os.Exit(1)
	}
}

func run(mib int, dir string) error {
	work, err := os.MkdirTemp(dir, "layerbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	r := result{MiB: mib}
	if r.Files, err = fill(filepath.Join(work, "src"), int64(mib)<<20); err != nil {
		return err
	}
	if r.CopyMBps, err = plainCopy(work, mib); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-child", work)
	cmd.Stderr = os.Stderr
	start := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	r.Seconds = time.Since(start).Seconds()
	r.MBps = float64(int64(mib)<<20) / 1e6 / r.Seconds
	if r.PeakRSSKiB, err = strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64); err != nil {
		return fmt.Errorf("build's peak memory: %w", err)
	}
	r.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	start = time.Now()
	if err := build(work); err != nil {
		return err
	}
	r.HitMillis = time.Since(start).Seconds() * 1e3
	return json.NewEncoder(os.Stdout).Encode(r)
}

// build is what a shim does for one layer.
func build(work string) error {
	c, err := layer.New(filepath.Join(work, "cache"))
	if err != nil {
		return err
	}
	l, err := c.Open(context.Background(), layer.Source{Kind: layer.Dir, Path: filepath.Join(work, "src")})
	if err != nil {
		return err
	}
	return l.Close()
}

// peak prints this process's peak memory in KiB. (The rusage that a parent gets counts the memory of
// the parent as well, from before the exec.)
func peak() error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	_, err = fmt.Println(kib)
	return err
}

// fill makes files as images have them: by size mostly large ones, by number mostly small ones.
func fill(dir string, total int64) (files int, err error) {
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 32<<20)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	sizes := []func() int64{
		func() int64 { return 8<<20 + r.Int64N(24<<20) },
		func() int64 { return 64<<10 + r.Int64N(512<<10) },
		func() int64 { return r.Int64N(16 << 10) },
	}
	parts := []int64{total * 6 / 10, total * 3 / 10, total / 10}
	for kind, left := range parts {
		for n := 0; left > 0; n++ {
			size := min(sizes[kind](), left)
			sub := filepath.Join(dir, fmt.Sprintf("kind%d", kind), fmt.Sprintf("dir%d", n/100))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return 0, err
			}
			off := r.Int64N(int64(len(data)) - size + 1)
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file%d", n)), data[off:off+size], 0o644); err != nil {
				return 0, err
			}
			left -= size
			files++
		}
	}
	return files, nil
}

// plainCopy puts all files into one, one after the other: the least that any builder has to do.
func plainCopy(work string, mib int) (mbps float64, err error) {
	out, err := os.Create(filepath.Join(work, "copy"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	start := time.Now()
	err = filepath.WalkDir(filepath.Join(work, "src"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer in.Close()
		// Hide the file's other methods: no copying inside the kernel.
		_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 512<<10))
		return err
	})
	return float64(int64(mib)<<20) / 1e6 / time.Since(start).Seconds(), err
}
