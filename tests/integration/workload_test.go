// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

// askForSecrets is a command that asks its guest for two secrets over the pod's port, and shows its socket.
var askForSecrets = []string{
	"sh", "-c", `for s in password user; do wget -qO- http://127.0.0.1:8006/cdh/resource/default/db/$s 2>&1; done; ` +
		"test -S " + contract.WorkloadSocket + " && echo socket",
}

// TestAContainerAsksForItsSecret: a container gets from the broker what the policy opens to it, and no other secret. A
// policy that opens nothing leaves it without port and socket.
func TestAContainerAsksForItsSecret(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	p, netns := networkPolicy(t, d, askForSecrets...), podNetwork(t)
	b := startBroker(t, "--allow-insecure")
	b.trusts(t, map[string]any{"launch_digest": []string{"abcde"}, "svn": []string{"1"}})
	config := func() string {
		text, digest := b.initdata(t, p, "insecure = true\n")
		b.trusts(t, map[string]any{"init_data": []string{digest}})
		return plainConfig(t, text)
	}
	p.Pod.WorkloadPort = 8006
	p.Containers[0].Workload = policy.Workload{Resources: []string{"kbs:///default/db/password"}}
	r := runIn(t, d, netns, config(), askForSecrets...)
	if r.Code != 0 || r.Stdout != "correct horse\n"+forbidden+"\nsocket\n" {
		t.Errorf("with workload: %+v", r)
	}
	p.Pod.WorkloadPort, p.Containers[0].Workload = 0, policy.Workload{}
	const nobody = "wget: can't connect to remote host (127.0.0.1): Connection refused\n"
	if r = runIn(t, d, netns, config(), askForSecrets...); r.Code == 0 || r.Stdout != nobody+nobody {
		t.Errorf("without workload: %+v", r)
	}
}
