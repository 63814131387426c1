// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/internal/testimage"
)

// An image as a volume is its layers, verified as those of a root file system are: neither its size nor the number
// of its files is bounded by what can be copied, upper layers cover lower ones, and containers share it.
func TestImageVolumesOfAnySize(t *testing.T) {
	p := runPod(t)
	const huge = 40 << 20
	var many []testimage.File
	for i := range 9000 {
		many = append(many, testimage.File{Path: fmt.Sprintf("many/%d", i), Mode: 0o644, Data: []byte("x")})
	}
	single := testimage.Image{}.WithLayer(append(many, testimage.File{
		Path: "model", Mode: 0o600,
		Data: make([]byte, huge),
	})...)
	layered := single.WithLayer(
		testimage.File{Path: "many/.wh.7", Mode: 0o644}, testimage.File{
			Path: "sub/added", Mode: 0o644,
			Data: []byte("second layer\n"),
		})
	for name, im := range map[string]testimage.Image{"single": single, "layered": layered} {
		if err := p.node.Import("coco.test/"+name+":t", im); err != nil {
			t.Fatal(err)
		}
	}
	image := func(name, at, sub string) *runtime.Mount {
		return &runtime.Mount{
			ContainerPath: at, Readonly: true, Image: &runtime.ImageSpec{Image: "coco.test/" + name + ":t"},
			ImageSubPath: sub,
		}
	}
	mounts := func(list ...*runtime.Mount) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { c.Mounts = list }
	}
	id := p.run("first", forever, mounts(image("single", "/one", ""), image("layered", "/two", ""),
		image("layered", "/sub", "sub")))
	p.want(id, "stat -c '%s %a' /one/model /two/model; ls /one/many | wc -l; ls /two/many | wc -l; cat /two/sub/added "+
		"/sub/added",
		fmt.Sprintf("%d 600\n%d 600\n9000\n8999\nsecond layer\nsecond layer", huge, huge))
	p.want(id, "(touch /one/x; touch /two/x; touch /sub/x) 2>&1 | grep -c 'Read-only'", "3")
	second := p.run("second", forever, mounts(image("layered", "/two", "")))
	p.want(second, "ls /two/many | wc -l", "8999")
}
