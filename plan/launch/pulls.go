// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
)

// pullsImages says whether a policy has an image with the member "pull", as opensWorkloadAPI does.
func pullsImages(policy string) bool { return strings.Contains(policy, `"pull":"`) }

// Pulls are the images that a pod's guest pulls itself, by the names of the containers: the repository with the digest
// of the manifest, "" for an image of the host's. nil: there is none.
type Pulls map[string]string

// PullsOf reads them from the policy in a pod's initdata. The guest does not rely on the answer: it compares what it
// is asked for with its policy, and a pod whose host does not ask does not start. So a policy that cannot be read has
// none, and initdata that cannot be read is For's to refuse.
func PullsOf(in Input) Pulls {
	d, err := document(in)
	if err != nil {
		return nil
	}
	return pullsOf(d)
}

func pullsOf(d *initdata.Document) Pulls {
	if d == nil || !pullsImages(d.Data[initdata.FilePolicy]) {
		return nil
	}
	var p struct {
		Containers []struct {
			Name  string
			Image struct{ Manifest, Pull string }
		}
	}
	if err := json.Unmarshal([]byte(d.Data[initdata.FilePolicy]), &p); err != nil {
		return nil
	}
	out := Pulls{}
	for _, c := range p.Containers {
		source := ""
		if c.Image.Pull != "" {
			source = c.Image.Pull + "@" + c.Image.Manifest
		}
		out[c.Name] = source
	}
	return out
}

// Of returns what the guest pulls for a container: by the name that CRI gives it, and for others, which have none, if
// it is the policy's only one. "": the host brings the image.
func (p Pulls) Of(s *specs.Spec) string {
	if source, ok := p[s.Annotations[contract.CRIContainerName]]; ok {
		return source
	}
	if len(p) == 1 {
		for _, source := range p {
			return source
		}
	}
	return ""
}
