// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/azure"
	"github.com/coco-shim/coco/trust/config"
	"github.com/coco-shim/coco/trust/wire"
)

// insecure tells of each switch in a pod's initdata with which something unproven is accepted. What is wrong in the
// initdata is told elsewhere. A line of a guest's console has 240 bytes at most.
func insecure(s wire.Setup) (list []string) {
	d, err := initdata.FromText([]byte(s.Initdata))
	if err != nil {
		return nil
	}
	b, _ := config.Parse(d.Data) // as for workloads: the switch counts for evidence without a broker, too
	a, _ := azure.Parse(d.Data)
	for _, file := range []struct {
		name string
		says bool
	}{{initdata.FileAA, b.Insecure}, {initdata.FileAzure, a.Insecure}} {
		switch {
		case !file.says:
		case s.TEE == "sample":
			list = append(list, file.name+
				" says insecure = true: this guest sends evidence of type sample, which anybody can make")
		default:
			list = append(list, file.name+" says insecure = true, which changes nothing where evidence is of type "+s.TEE)
		}
	}
	p, err := policy.Load([]byte(d.Data[policy.FileName]))
	if err == nil && p.Pod.Sealed.InsecureUnsigned {
		list = append(list, "the policy says insecureUnsigned: sealed texts that nobody has signed are opened")
	}
	return list
}
