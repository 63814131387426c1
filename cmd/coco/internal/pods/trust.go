// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// Words for a value that is not there, and for one that this host's files do not tell.
const (
	none    = "none"
	unknown = "unknown"
)

// trust has the values by which a pod's owner recognises the guest. They are this host's words: only evidence of the
// guest proves them.
type trust struct {
	Platform    string           `json:"platform"`
	LaunchFacts *launch.Expected `json:"launch,omitempty"` // as the hardware will report them; plain: none
	// Initdata and Policy are digests as "sha256:…", "none" or "unknown".
	Initdata string `json:"initdata_digest,omitempty"`
	Policy   string `json:"policy_digest,omitempty"` // of the bytes of policy.coco, with SHA-256
	Begun    string `json:"begun_from,omitempty"`    // "boot", "template" or "unknown"
}

// fill looks at the pod's bundle.
func (t *trust) fill(ctx context.Context, v view) {
	t.Initdata, t.Policy, t.Begun = unknown, unknown, unknown
	b, err := bundleOf(v.socket)
	if err != nil {
		return
	}
	t.Begun = begun(b)
	a, err := annotations(ctx, b, v)
	if err != nil {
		return
	}
	value, there := a[contract.KataInitdata]
	switch {
	case there:
		t.read(value)
	case configured(b) != "": // by hypervisor.initdata of a configuration that this program does not know
		t.Initdata = configured(b)
	case t.Platform == configs.PlatformVTPM: // which initdata the guest has measured is not in any file of the host
	case t.LaunchFacts == nil || strings.Trim(t.LaunchFacts.HostData, "0") == "":
		t.Initdata, t.Policy = none, none
	default: // hypervisor.initdata of a configuration that this program does not know
		t.Initdata = t.LaunchFacts.HostData
	}
}

// read takes the digests out of the annotation of the pod.
func (t *trust) read(annotation string) {
	d, err := initdata.FromAnnotation(annotation)
	if err != nil {
		return // the shim refuses such a pod; this one has changed since
	}
	t.Initdata = d.Algorithm + ":" + hex.EncodeToString(d.Digest())
	t.Policy = none
	if text, ok := d.Data[policy.FileName]; ok {
		sum := sha256.Sum256([]byte(text))
		t.Policy = "sha256:" + hex.EncodeToString(sum[:])
	}
}

// annotations are those of the pod as the shim got them. A sandbox of the sandbox API has no specification; containerd
// gives the same annotations to each of its containers.
func annotations(ctx context.Context, b bundle.Dir, v view) (map[string]string, error) {
	spec, err := ReadSpec(string(b))
	if err == nil {
		return spec.Annotations, nil
	}
	if b.HasSpec() {
		return nil, err
	}
	t, err := dialTask(ctx, b)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	for _, c := range v.Containers {
		if st, err := t.State(ctx, c.ID); err == nil && st.Bundle != string(b) {
			if spec, err := ReadSpec(st.Bundle); err == nil {
				return spec.Annotations, nil
			}
		}
	}
	return nil, fmt.Errorf("pod %s has no container yet", v.Name)
}

// configured is the digest of initdata on the guest's command line, as "sha256:…", or "" where there is none.
func configured(b bundle.Dir) string {
	_, rest, found := strings.Cut(vmmArguments(b), contract.ParamInitdata+"=")
	if !found {
		return ""
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r == ' ' || r == 0 })
	return rest[:max(end, 0)]
}

// vmmArguments is the command line of the pod's VMM, each word ended by a zero byte; "" if it cannot be read.
func vmmArguments(b bundle.Dir) string {
	j, err := state.Load(string(b))
	if err != nil || j.VMM == nil {
		return ""
	}
	args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(j.VMM.PID), "cmdline"))
	if err != nil {
		return ""
	}
	return string(args)
}

// begun tells from the command line of QEMU whether the guest came from a saved one. Other VMMs save none.
func begun(b bundle.Dir) string {
	switch args := vmmArguments(b); {
	case args == "":
		return unknown
	case strings.Contains(args, "\x00-incoming\x00"):
		return "template"
	}
	return "boot"
}
