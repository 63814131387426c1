// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
)

// Annotations by which Kubernetes runtimes say that a container belongs to a pod. The values of the
// type are "sandbox" and "container" in all of them.
var podAnnotations = []struct{ kind, sandbox string }{
	{contract.CRIContainerType, contract.CRISandboxID},
	{contract.CRIOContainerType, contract.CRIOSandboxID},
}

// Role is the part that a container has in its pod.
type Role struct {
	Sandbox bool   // stands for the pod itself
	PodID   string // of a container in a pod: the sandbox; otherwise the container itself
}

// RoleOf reads the role of container id from the annotations of its OCI spec.
func RoleOf(id string, annotations map[string]string) (Role, error) {
	for _, a := range podAnnotations {
		switch kind := annotations[a.kind]; kind {
		case "":
			continue
		case "sandbox":
			return Role{Sandbox: true, PodID: id}, nil
		case "container":
			pod := annotations[a.sandbox]
			if err := CheckName("annotation "+a.sandbox, pod); err != nil {
				return Role{}, err
			}
			return Role{PodID: pod}, nil
		default:
			return Role{}, fmt.Errorf("annotation %s of %s is %q, not sandbox or container: %w", a.kind, id, kind,
				errdefs.ErrInvalidArgument)
		}
	}
	return Role{PodID: id}, nil
}

// ReadRole reads the role from the bundle's config.json. A bundle without one belongs to a sandbox
// that is made through the sandbox API.
func ReadRole(bundle, id string) (Role, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if os.IsNotExist(err) {
		return Role{Sandbox: true, PodID: id}, nil
	}
	if err != nil {
		return Role{}, fmt.Errorf("read OCI spec of %s: %w", id, err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return Role{}, fmt.Errorf("OCI spec of %s: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	return RoleOf(id, spec.Annotations)
}
