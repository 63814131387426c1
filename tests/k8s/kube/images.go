// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/tests/harness"
)

// Busybox is the image of the tests of our own.
const Busybox = "docker.io/library/busybox:coco"

// ExampleImage is what deploy/example-pod.yaml runs.
const ExampleImage = "docker.io/library/busybox:1.37"

// BasicImages writes what static pods need below dir and returns the archives: busybox, and the pause image for
// pods under runc.
func BasicImages(dir string) ([]string, error) {
	bb, err := testimage.Busybox("")
	if err != nil {
		return nil, err
	}
	pause, err := pauseImage(dir)
	if err != nil {
		return nil, err
	}
	return writeImages(dir, map[string]testimage.Image{Busybox: bb, sandboxImage: pause})
}

// E2EImages writes the images that the conformance specs use, under their upstream names, from binaries of the same
// Kubernetes version.
func E2EImages(dir string) ([]string, error) {
	bb, err := testimage.Busybox("")
	if err != nil {
		return nil, err
	}
	pause, err := pauseImage(dir)
	if err != nil {
		return nil, err
	}
	// busybox's shell keeps from its commands what is in the environment under names that no shell variable can have;
	// specs with ConfigMaps as environment need a shell that passes them on.
	bash, err := os.ReadFile("/bin/bash-static")
	if err != nil {
		return nil, fmt.Errorf("bash-static: %w: tests/setup.sh k8s", harness.ErrAbsent)
	}
	bb = bb.WithLayer(
		testimage.File{Path: "bin/sh", Mode: 0o755, Data: bash},
		// for lifecycle hooks
		testimage.File{Path: "bin/curl", Mode: 0o755, Data: []byte("#!/bin/sh\nexec wget -qO- \"$1\"\n")})
	var data [2][]byte
	for i, name := range []string{"agnhost", "nonewprivs"} {
		p, err := binary(name, "k8s")
		if err != nil {
			return nil, err
		}
		if data[i], err = os.ReadFile(p); err != nil {
			return nil, err
		}
	}
	agnhost := bb.WithLayer(
		testimage.File{Path: "agnhost", Mode: 0o755, Data: data[0]},
		testimage.File{Path: "agnhost-2", Mode: os.ModeSymlink | 0o777, Link: "agnhost"})
	agnhost.Config = v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: bb.Config.Env}
	nnp := bb.WithLayer(testimage.File{Path: "nnp", Mode: os.ModeSetuid | 0o755, Data: data[1]})
	nnp.Config = v1.Config{Entrypoint: []string{"/nnp"}, User: "1000", Env: bb.Config.Env}
	bb.Config.Cmd = []string{"sh"}
	const e2e = "registry.k8s.io/e2e-test-images/"
	return writeImages(dir, map[string]testimage.Image{
		Busybox: bb, ExampleImage: bb, e2e + "busybox:1.36.1-1": bb, e2e + "busybox:1.37.0-2": bb,
		sandboxImage: pause, "registry.k8s.io/pause:3.10.1": pause, "registry.k8s.io/pause:3.10.2": pause,
		e2e + "agnhost:2.55": agnhost, e2e + "agnhost:2.66.1": agnhost,
		e2e + "nonewprivs:1.4": nnp,
	})
}

func pauseImage(dir string) (testimage.Image, error) {
	bin := filepath.Join(dir, "pause")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", bin, "./tests/k8s/pause")
	if _, err := exec.LookPath("go"); err != nil {
		cmd.Path, cmd.Err = "/usr/local/go/bin/go", nil
	}
	cmd.Dir, cmd.Env = harness.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return testimage.Image{}, fmt.Errorf("build the pause program: %w: %s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return testimage.Image{}, err
	}
	return testimage.Image{
		Layers: [][]testimage.File{{{Path: "pause", Mode: 0o755, Data: data}}},
		Config: v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
	}, os.Remove(bin)
}

func writeImages(dir string, images map[string]testimage.Image) ([]string, error) {
	var files []string
	for ref, im := range images {
		file := filepath.Join(dir, strings.NewReplacer("/", "_", ":", "_").Replace(ref)+".tar")
		if err := im.WriteFile(file, ref); err != nil {
			return nil, errors.Join(fmt.Errorf("image %s", ref), err)
		}
		files = append(files, file)
	}
	return files, nil
}
