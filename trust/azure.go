// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"io"
	"runtime/debug"
	"slices"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/azure"
	"github.com/coco-shim/coco/trust/workload"
)

// azureMemory is how much memory a coco-trust with Azure's endpoints should get by with.
const azureMemory = 14 << 20

// openAzure adds the endpoints for Azure where the policy opens them to a container.
func openAzure(cfg *workload.Config, tee string, d *initdata.Document, device io.ReadWriter) (stop func(), err error) {
	if !slices.ContainsFunc(cfg.Policy.Containers, func(c policy.Container) bool { return c.Workload.Azure.Opens() }) {
		return func() {}, nil
	}
	if err := cfg.Policy.Validate(); err != nil { // Load leaves out the checks of these members
		return nil, err
	}
	debug.SetMemoryLimit(azureMemory)
	c, broken := azure.Parse(d.Data)
	var why error
	var a azure.Attester = cfg.Attester
	if cfg.Attester == nil { // the endpoints ask c.Insecure before they send what proves nothing
		if a, why = attesterOf(tee, true, device); why != nil {
			a = nil
		}
	}
	e := azure.New(cfg.Policy, c, broken, a, why)
	cfg.Azure = e
	return e.Close, nil
}
