// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/initdata"
)

// fakeJudge denies what it is told to: the sandbox under "", containers by their ids.
type fakeJudge struct {
	t       *testing.T
	answers map[string]error
	asked   []string
}

func (j *fakeJudge) Foresee(_ context.Context, policy string, box *agent.CreateSandboxRequest,
	c *agent.CreateContainerRequest,
) error {
	if policy != "text of the policy" || box.GetSandboxId() != "c1" {
		j.t.Errorf("asked about %q of policy %q", box.GetSandboxId(), policy)
	}
	j.asked = append(j.asked, c.GetContainerId()+" "+strings.Join(c.GetOCI().GetProcess().GetArgs(), " "))
	return j.answers[c.GetContainerId()]
}

// judged are options of a pod with a policy.
func (j *fakeJudge) judged(w *world, o Options) Options {
	w.t.Helper()
	o.Host.Judge = j
	o.Initdata = initdataAnnotation(j.t, initdataText+"\""+initdata.FilePolicy+"\" = \"text of the policy\"\n")
	return o
}

var errDenied = fmt.Errorf("denied [value] web/OCI.Process.Args: expected …: %w", errdefs.ErrPermissionDenied)

// TestAPolicyIsAskedBeforeTheVMRuns: a denial ends the pod before a VM was launched, and nothing is left.
func TestAPolicyIsAskedBeforeTheVMRuns(t *testing.T) {
	w := newWorld(t)
	j := &fakeJudge{t: t, answers: map[string]error{"c1": errDenied}}
	_, err := CreatePod(t.Context(), j.judged(w, w.options("sleep")))
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "policy: "+errDenied.Error()) {
		t.Errorf("the denial: %v", err)
	}
	if left := w.left(); w.did("driver launch") || len(left) > 0 {
		t.Errorf("a VM was launched (%v), or something is left: %q", w.did("driver launch"), left)
	}
	if len(j.asked) != 1 || j.asked[0] != "c1 sleep" {
		t.Errorf("asked about %q", j.asked)
	}
}

// TestWithoutAnAnswerTheGuestDecides: the question may fail, and later containers are asked about by themselves.
func TestWithoutAnAnswerTheGuestDecides(t *testing.T) {
	w := newWorld(t)
	j := &fakeJudge{t: t, answers: map[string]error{"": errors.New("no program coco"), "c2": errDenied}}
	o := j.judged(w, w.options("sleep"))
	first := *o.First
	o.First = nil
	p, err := CreatePod(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	if _, _, err := p.CreateContainer(t.Context(), first); err != nil {
		t.Error(err)
	}
	second := first
	second.ID = "c2"
	if _, _, err := p.CreateContainer(t.Context(), second); !errdefs.IsPermissionDenied(err) {
		t.Errorf("a container that the policy denies: %v", err)
	}
	if w.vm().agent.count() != 1 {
		t.Errorf("the guest has %d containers", w.vm().agent.count())
	}
	if got := strings.Join(j.asked, ","); got != " ,c1 sleep,c2 sleep" {
		t.Errorf("asked about %q", got)
	}
}
