// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine makes the policy of a container that is not a pod's: one of ctr, nerdctl or Docker.
//
// Such a container is the product of a command line, of the configuration of its engine and of its image. Package
// engine predicts nothing of that: it reads the OCI specification that the engine itself has written, which is what the
// shim gets, and converts it with the shim's functions (plan/volume, plan/request).
package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
)

// Container is a container as its engine describes it.
type Container struct {
	ID    string
	Image string // reference; "": the description has none
	Spec  *specs.Spec
	// Interfaces are those of the container's network, as far as the description tells.
	Interfaces []string
	// Docker says that Docker made the container, with a layer of its own on the image.
	Docker bool
}

// described is what `ctr container info` prints, also of Docker's containers, and nerdctl of itself.
type described struct {
	ID, Image string
	Labels    map[string]string
	Spec      *specs.Spec
	Config    json.RawMessage // of what Docker prints
}

// MaxText bounds a description.
const MaxText = 4 << 20

// Labels of nerdctl, which it writes into the annotations of the specification as well.
const (
	nerdctlLabels   = "nerdctl/"
	nerdctlNetworks = nerdctlLabels + "networks"
)

// dockerBundle is a label that Docker gives its containers in containerd.
const dockerBundle = "com.docker/engine.bundle.path"

// dockerLayer is the root hash of the layer that Docker puts between an image and its container: empty files to mount
// on. Each container has a directory of its own for it, and image/erofs makes the same layer of all of them.
const dockerLayer = "bf64aecdc29b27f72b34f374f330f11600b3ccd99e1862fde8416876deb3515f"

// Parse reads the description of one container: what `ctr container info` prints, or `nerdctl container inspect
// --mode=native`.
func Parse(text []byte) (Container, error) {
	var list []described
	err := json.Unmarshal(text, &list)
	if err != nil {
		list = make([]described, 1)
		err = json.Unmarshal(text, &list[0])
	}
	switch {
	case err != nil:
		return Container{}, fmt.Errorf("it is no description of a container in JSON: %w", err)
	case len(list) != 1:
		return Container{}, fmt.Errorf("it describes %d containers: give one", len(list))
	case list[0].Spec == nil && list[0].Config != nil:
		return Container{}, errors.New("it is a description of Docker's kind, without the specification that the runtime " +
			"gets: give what nerdctl container inspect --mode=native prints, or for Docker ctr -n moby container info ID " +
			"while the container runs")
	case list[0].Spec == nil || list[0].Spec.Process == nil || list[0].Spec.Linux == nil || list[0].ID == "":
		return Container{}, errors.New("it is no description of a container with its ID and its OCI specification: give " +
			"what ctr container info ID prints, or nerdctl container inspect --mode=native")
	}
	d := list[0]
	for _, key := range []string{contract.CRISandboxID, contract.CRIOSandboxID} {
		if d.Spec.Annotations[key] != "" {
			return Container{}, errors.New("it belongs to a pod of Kubernetes: make the policy from the pod's manifest")
		}
	}
	out := Container{ID: d.ID, Image: d.Image, Spec: d.Spec, Docker: d.Labels[dockerBundle] != ""}
	out.Interfaces, err = interfaces(d)
	return out, err
}

// interfaces are those that the engine's networks will be: nerdctl writes a list of them down.
func interfaces(d described) (out []string, err error) {
	text := d.Labels[nerdctlNetworks]
	if text == "" {
		return nil, nil
	}
	var networks []string
	if err := json.Unmarshal([]byte(text), &networks); err != nil {
		return nil, fmt.Errorf("label %s: %w", nerdctlNetworks, err)
	}
	networks = slices.DeleteFunc(networks, func(n string) bool { return n == "none" })
	for i := range networks {
		out = append(out, fmt.Sprintf("eth%d", i))
	}
	return out, nil
}

// engineMade says whether an engine has made a container's host name of its ID, so that the next container of the same
// command line has another one.
func (c Container) engineMade() bool {
	return len(c.Spec.Hostname) >= 12 && strings.HasPrefix(c.ID, c.Spec.Hostname)
}
