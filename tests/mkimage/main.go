// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mkimage writes the busybox image that the demo and the benchmark run.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/coco-shim/coco/internal/testimage"
)

func main() {
	out := flag.String("out", "busybox.tar", "archive to write")
	ref := flag.String("ref", "docker.io/library/busybox:coco", "name of the image in the archive")
	busybox := flag.String("busybox", "", "static busybox binary (default: the one on PATH)")
	flag.Parse()
	if err := run(*out, *ref, *busybox); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(out, ref, busybox string) error {
	im, err := testimage.Busybox(busybox)
	if err != nil {
		return err
	}
	return im.WriteFile(out, ref)
}
