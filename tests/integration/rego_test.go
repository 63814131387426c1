// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/initdata"
)

// regoPolicy is initdata with a policy of Kata's agent that allows each request but those that rules are given for.
func regoPolicy(rules string) string {
	var b strings.Builder
	b.WriteString("package agent_policy\nimport future.keywords.if\n")
	methods := pb.File_coco_agent_agent_proto.Services().ByName("AgentService").Methods()
	seen := map[string]bool{}
	for i := range methods.Len() {
		name := string(methods.Get(i).Input().Name())
		if !seen[name] && !strings.Contains(rules, name+" ") {
			fmt.Fprintf(&b, "default %s := true\n", name)
		}
		seen[name] = true
	}
	return "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"" + initdata.FileRego + "\" = '''" + b.String() +
		rules + "\n'''\n"
}

// TestAPolicyOfKatasAgentDecides in a real guest: coco-rego runs from its part of the image, and only forbids.
func TestAPolicyOfKatasAgentDecides(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	const echo = `CreateContainerRequest if {
	print("only echo runs here, not", input.OCI.Process.Args[0])
	input.OCI.Process.Args[0] == "echo"
	not data.pstate[input.container_id]
}
`
	policy := regoPolicy("default CreateContainerRequest := false\n" + echo)
	if r := runWith(t, d, policy, "", "echo", "hello"); r.Code != 0 || r.Stdout != "hello\n" {
		t.Errorf("the allowed command: %+v", r)
	}
	refused(t, runWith(t, d, policy, "", "cat", "/etc/passwd"),
		"CreateContainerRequest is blocked by policy: only echo runs here, not cat")
	silent := runWith(t, d, regoPolicy("default ReadStreamRequest := false\n"), "", "echo", "hello")
	if silent.Code != 0 || silent.Stdout != "" {
		t.Errorf("output that the policy closes: %+v", silent)
	}
	refused(t, runWith(t, d, regoPolicy("no Rego"), "", "echo", "hello"), "could not be started", "policy.rego is refused")
	// 16 GB of text end the engine: everything is denied from then on.
	refused(t, runWith(t, d, regoPolicy(`StartContainerRequest if {
	count(big(big(big(big(big(big(big(big(big("0123456789abcdef")))))))))) == 1
}
big(x) := concat("", [x, x, x, x, x, x, x, x, x, x])`), "", "echo", "hello"), "coco-rego does not answer")
}
