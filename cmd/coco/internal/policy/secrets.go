// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/manifest"
	"github.com/coco-shim/coco/trust/config"
)

// secrets is the value of --secret.
type secrets struct{ of *map[string][]policy.Secret }

// String is the default: none.
func (secrets) String() string { return "" }

// Type is shown in the help.
func (secrets) Type() string { return "secret" }

// Set adds a secret. The policy's own checks follow when the policy is there.
func (s secrets) Set(text string) error {
	container, rest, ok := strings.Cut(text, "=")
	resource, rest, more := strings.Cut(rest, ",")
	if !ok || !more || container == "" {
		return fmt.Errorf("%.200q is not CONTAINER=RESOURCE,file=PATH or CONTAINER=RESOURCE,env=NAME", text)
	}
	x := policy.Secret{Resource: resource}
	for option := range strings.SplitSeq(rest, ",") {
		if option == "sealed" && !x.Sealed {
			x.Sealed = true
			continue
		}
		key, value, _ := strings.Cut(option, "=")
		to := map[string]*string{"file": &x.File, "env": &x.Env, "mode": &x.Mode, "renew": &x.Renew}[key]
		if to == nil || value == "" || *to != "" {
			return fmt.Errorf("%.200q: %.80q is not file=PATH, mode=OCTAL, renew=TIME, env=NAME or sealed, or comes a second "+
				"time", text, option)
		}
		*to = value
	}
	if *s.of == nil {
		*s.of = map[string][]policy.Secret{}
	}
	(*s.of)[container] = append((*s.of)[container], x)
	return nil
}

// checkContainers refuses names of containers that no workload has: a misspelled one would leave out what a flag gives
// it.
func checkContainers[V any](flag string, of map[string]V, workloads []manifest.Workload) error {
	for name := range of {
		known := slices.ContainsFunc(workloads, func(w manifest.Workload) bool {
			for _, c := range slices.Concat(w.Pod.Spec.InitContainers, w.Pod.Spec.Containers) {
				if c.Name == name {
					return true
				}
			}
			return false
		})
		if !known {
			return fmt.Errorf("%s: no pod has a container %q", flag, name)
		}
	}
	return nil
}

// checkBroker refuses initdata without a broker for a policy with secrets or tokens: its pods could not start, or would
// not get them.
func checkBroker(p *policy.Policy, files map[string]string) error {
	i := slices.IndexFunc(p.Containers, func(c policy.Container) bool {
		return len(c.Secrets)+len(c.Workload.Resources) > 0 || slices.Contains(c.Workload.Calls, policy.CallToken)
	})
	if i < 0 {
		return nil
	}
	if _, err := config.Parse(files); err != nil {
		return fmt.Errorf("container %s has secrets: %w; name the broker in %s of the document that --initdata gives",
			p.Containers[i].Name, err, initdata.FileAA)
	}
	return nil
}
