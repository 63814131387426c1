// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

const densePod = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  runtimeClassName: coco
  terminationGracePeriodSeconds: 1
  containers:
  - &c
    name: a
    image: ` + kube.Busybox + `
    command: [sleep, "100000"]
    resources: {requests: {memory: 16Mi, cpu: 1m}, limits: {memory: 64Mi, cpu: 500m}} # small nodes take ten, too
  - {<<: *c, name: b}
`

// shimMiB is the most that a shim may take.
const shimMiB = 16

// density runs pods of two containers beside each other and says what each costs the host.
func (s *settings) density(ctx context.Context) error {
	n, err := s.cluster(ctx, "runc")
	if err != nil {
		return err
	}
	err = s.dense(ctx, n)
	return errors.Join(err, s.end(n))
}

func (s *settings) dense(ctx context.Context, n *kube.Node) error {
	var names []string
	for i := range s.pods {
		name := fmt.Sprintf("dense-%d", i)
		if _, err := n.Kubectl(ctx, fmt.Sprintf(densePod, name), "apply", "-f", "-"); err != nil {
			return err
		}
		names = append(names, name)
	}
	s.say("%d pods asked for", len(names))
	if _, err := n.Kubectl(ctx, "", "wait", "--for=condition=Ready", "pods", "--all", "--timeout=600s"); err != nil {
		return err
	}
	s.say("all are ready")
	var errs []error
	for _, name := range names {
		id, err := n.Sandbox(ctx, name)
		if err != nil {
			return err
		}
		shim, vmm, err := harness.Pids(id)
		if err != nil {
			return err
		}
		sh, err := residentKiB(shim)
		if err != nil {
			return err
		}
		v, err := residentKiB(vmm)
		if err != nil {
			return err
		}
		s.say("%s: shim %.1f MiB; VMM %.1f MiB, of which the guest's memory %.1f MiB of %d and the VMM itself %.1f MiB", name,
			mib(sh.all), mib(v.all), mib(v.guest), v.guestMiB, mib(v.all-v.guest))
		if mib(sh.all) > shimMiB {
			errs = append(errs, fmt.Errorf("the shim of %s takes %.1f MiB, more than %d", name, mib(sh.all), shimMiB))
		}
	}
	return errors.Join(errs...)
}

func mib(kib int) float64 { return float64(kib) / 1024 }

// resident is what a process holds in memory; of a VMM, how much of it is its guest's.
type resident struct{ all, guest, guestMiB int }

var (
	mapping = regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) `)
	memArg  = regexp.MustCompile("\x00-m\x00(\\d+)M")
)

func residentKiB(pid int) (resident, error) {
	var r resident
	text, err1 := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	args, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err := errors.Join(err1, err2); err != nil {
		return r, err
	}
	if m := memArg.FindSubmatch(args); m != nil {
		r.guestMiB, _ = strconv.Atoi(string(m[1]))
	}
	guest := false
	for line := range strings.SplitSeq(string(text), "\n") {
		if m := mapping.FindStringSubmatch(line); m != nil {
			from, _ := strconv.ParseUint(m[1], 16, 64)
			to, _ := strconv.ParseUint(m[2], 16, 64)
			guest = r.guestMiB > 0 && to-from == uint64(r.guestMiB)<<20
		}
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Rss:" {
			kib, _ := strconv.Atoi(f[1])
			r.all += kib
			if guest {
				r.guest += kib
			}
		}
	}
	return r, nil
}
