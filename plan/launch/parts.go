// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
)

// partOf maps files of initdata to the parts that they ask for.
var partOf = map[string]string{
	initdata.FileAA:   contract.PartTrust,
	initdata.FileCDH:  contract.PartTrust,
	initdata.FileRego: contract.PartRego,
}

// Parts lists the parts of the guest image that a pod's initdata asks for, each once, in the order of their names. The
// guest does not rely on the answer: it opens a part with the root hash that it knows, and a pod that needs a part that
// is not attached does not start.
func Parts(d *initdata.Document) []string {
	if d == nil {
		return nil
	}
	var out []string
	for file := range d.Data {
		if part := partOf[file]; part != "" && !slices.Contains(out, part) {
			out = append(out, part)
		}
	}
	policy := d.Data[initdata.FilePolicy]
	if (opensWorkloadAPI(policy) || pullsImages(policy)) && !slices.Contains(out, contract.PartTrust) {
		out = append(out, contract.PartTrust)
	}
	slices.Sort(out)
	return out
}

// opensWorkloadAPI says whether a policy has a container with the member "workload". A guest takes a policy in its
// canonical form only, in which the member is written so, and in a text the quotes would be escaped.
func opensWorkloadAPI(policy string) bool { return strings.Contains(policy, `"workload":{`) }
