// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/filters"
)

const filter = `{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
	"syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}]}`

// A filter has one digest, whatever it is written in; another filter has another one.
func TestTheDigestOfAFilter(t *testing.T) {
	digests := map[string]string{}
	for name, text := range map[string]string{
		"profile":        filter,
		"config.json":    `{"ociVersion": "1.1.0", "linux": {"seccomp": ` + filter + `}}`,
		"ctr":            `{"ID": "x", "Spec": {"linux": {"seccomp": ` + filter + `}}}`,
		"crictl inspect": `{"status": {}, "info": {"runtimeSpec": {"linux": {"seccomp": ` + filter + `}}}}`,
	} {
		digest, err := FilterDigest([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		digests[digest] = name
	}
	if len(digests) != 1 {
		t.Errorf("the same filter has the digests %v", digests)
	}
	other, err := FilterDigest([]byte(strings.Replace(filter, `"write"`, `"ptrace"`, 1)))
	if err != nil || digests[other] != "" {
		t.Errorf("another filter: %s, %v", other, err)
	}
	for text, want := range map[string]string{
		"{": "unexpected end", "{}": "no seccomp filter", `{"linux": {}}`: "no seccomp filter",
		`{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}`: "listener on the host",
	} {
		if digest, err := FilterDigest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", text, digest, err, want)
		}
	}
}

// The owner says which filters RuntimeDefault and a profile of the node are, and the policy pins no other filter.
func TestFiltersThatTheOwnerGives(t *testing.T) {
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {automountServiceAccountToken: false,
		containers: [{name: c, image: i, securityContext: {seccompProfile: PROFILE}}]}}`
	for _, tc := range []struct {
		profile string
		options Options
		want    []string
		err     string
	}{
		{"{type: RuntimeDefault}", Options{Seccomp: []string{"sha256:" + strings.Repeat("a", 64)}}, []string{
			"sha256:" + strings.Repeat("a", 64),
		}, ""},
		{"{type: RuntimeDefault}", Options{}, filters.Of(strings.Fields(defaultCaps)), ""},
		{"{type: RuntimeDefault}, capabilities: {drop: [ALL]}", Options{}, filters.Of(nil), ""},
		{"{type: RuntimeDefault}, capabilities: {add: [SYS_TIME, SYS_BOOT]}", Options{}, nil, "--seccomp"},
		{"{type: Localhost, localhostProfile: a/b.json}", Options{
			LocalSeccomp: map[string]string{"a/b.json": "sha256:" + strings.Repeat("b", 64)},
		}, []string{"sha256:" + strings.Repeat("b", 64)}, ""},
		{"{type: Localhost, localhostProfile: a/b.json}", Options{
			Seccomp: []string{"sha256:" + strings.Repeat("a", 64)}, LocalSeccomp: map[string]string{"b.json": "x"},
		}, nil, "--seccomp a/b.json=FILE"},
		{"{type: Unconfined}", Options{Seccomp: []string{"sha256:" + strings.Repeat("a", 64)}}, []string{
			policy.NoSeccomp,
		}, ""},
	} {
		p, _, err := generate(t, strings.Replace(pod, "PROFILE", tc.profile, 1), tc.options)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want %q", tc.profile, err, tc.err)
			}
		case err != nil:
			t.Errorf("%s: %v", tc.profile, err)
		case !slices.Equal(p.Containers[0].Linux.Seccomp, tc.want):
			t.Errorf("%s: the policy has %v, want %v", tc.profile, p.Containers[0].Linux.Seccomp, tc.want)
		}
	}
}
