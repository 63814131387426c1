// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/filters"
)

// A manifest says "RuntimeDefault" and does not say what that is: the filter comes with the release of containerd and
// depends on the container's capabilities. The digests of the releases' filters are known (package filters); the owner
// may give other ones, from a node that he trusts. A profile of type Localhost is a file on the node, which he gives.

// seccomp lists the filters with which a container of these capabilities may run.
func (g *generator) seccomp(c *corev1.Container, bounding []string) ([]string, error) {
	var p *corev1.SeccompProfile
	if sc := g.pod.SecurityContext; sc != nil {
		p = sc.SeccompProfile
	}
	if sc := c.SecurityContext; sc != nil && sc.SeccompProfile != nil {
		p = sc.SeccompProfile
	}
	standard := g.Options.Seccomp
	if len(standard) == 0 {
		standard = filters.Of(bounding)
	}
	const field = "securityContext.seccompProfile"
	switch {
	case p == nil:
		return append([]string{policy.NoSeccomp}, standard...), nil // kubelet's seccompDefault decides
	case p.Type == corev1.SeccompProfileTypeUnconfined:
		return []string{policy.NoSeccomp}, nil
	case p.Type == corev1.SeccompProfileTypeRuntimeDefault && len(standard) > 0:
		return standard, nil
	case p.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return nil, fmt.Errorf("%s is RuntimeDefault, and which filter that is with these capabilities, only the nodes' "+
			"containerd knows: give the specification of a container that runs with it (--seccomp)", field)
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		if digest := g.Options.LocalSeccomp[*p.LocalhostProfile]; digest != "" {
			return []string{digest}, nil
		}
		return nil, fmt.Errorf("%s is the file %q of the node: give its content (--seccomp %s=FILE)", field,
			*p.LocalhostProfile, *p.LocalhostProfile)
	}
	return nil, fmt.Errorf("%s is of the unknown type %q", field, p.Type)
}

// FilterDigest returns the digest, as policies have it, of the seccomp filter in a JSON document: an OCI specification
// (a bundle's config.json), what "ctr container info" or "crictl inspect" print, or a profile alone, as the files of a
// node are.
func FilterDigest(text []byte) (string, error) {
	var d struct {
		specs.LinuxSeccomp
		Linux *specs.Linux `json:"linux"`
		Spec  *specs.Spec  `json:"Spec"`
		Info  struct {
			RuntimeSpec *specs.Spec `json:"runtimeSpec"`
		} `json:"info"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return "", err
	}
	filter := &d.LinuxSeccomp
	for _, s := range []*specs.Spec{d.Spec, d.Info.RuntimeSpec, {Linux: d.Linux}} {
		if s != nil && s.Linux != nil && s.Linux.Seccomp != nil {
			filter = s.Linux.Seccomp
		}
	}
	if filter.DefaultAction == "" {
		return "", errors.New("there is no seccomp filter in it")
	}
	sent, err := request.Seccomp(filter)
	if err != nil {
		return "", err
	}
	return policy.SeccompDigest(sent), nil
}
