// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"maps"
	"math"
	"math/big"
	"strconv"

	"github.com/coco-shim/coco/api/contract"
)

// list are amounts by resource; a resource that is missing differs from one of zero.
type list map[string]*big.Rat

func (l list) add(o list) {
	for k, q := range o {
		if l[k] == nil {
			l[k] = new(big.Rat)
		}
		l[k] = new(big.Rat).Add(l[k], q)
	}
}

func (l list) raise(o list) {
	for k, q := range o {
		if l[k] == nil || q.Cmp(l[k]) > 0 {
			l[k] = q
		}
	}
}

type resources struct{ requests, limits list }

// withDefaults are the resources of a container as the API server stores them: a limit is a request where there is
// none.
func (r resources) withDefaults() resources {
	req := maps.Clone(r.limits)
	if req == nil {
		req = list{}
	}
	maps.Copy(req, r.requests)
	return resources{requests: req, limits: r.limits}
}

// effective is what a pod needs: the sum over its containers, or what its init containers need if that is more. A
// sidecar (an init container that is restarted) runs beside all that come after it.
func effective(containers, inits []container, of func(resources) list) list {
	sum := list{}
	for _, c := range containers {
		sum.add(of(c.resources))
	}
	sidecars, most := list{}, list{}
	for _, c := range inits {
		if c.sidecar {
			sum.add(of(c.resources))
			sidecars.add(of(c.resources))
			most.raise(sidecars)
			continue
		}
		now := list{}
		now.add(of(c.resources))
		now.add(sidecars)
		most.raise(now)
	}
	sum.raise(most)
	return sum
}

// sandbox are the resources that kubelet passes for the pod's sandbox (calculateSandboxResources in
// pkg/kubelet/kuberuntime, Kubernetes 1.37): without the overhead of the RuntimeClass.
//
// stored is the pod as the API server completed it, before LimitRanges.
func (p podSpec) sandbox(stored podSpec) resources {
	r := resources{
		requests: effective(p.containers, p.inits, func(r resources) list { return r.withDefaults().requests }),
		limits:   effective(p.containers, p.inits, func(r resources) list { return r.limits }),
	}
	// Resources of the pod itself count instead of its containers'. The API server completes the requests, where
	// there are limits, from the containers' and then from the limits.
	before := effective(stored.containers, stored.inits, func(r resources) list { return r.withDefaults().requests })
	own := maps.Clone(p.resources.requests)
	if own == nil {
		own = list{}
	}
	for _, k := range []string{"cpu", "memory"} {
		if len(p.resources.limits) > 0 && own[k] == nil {
			if q := before[k]; q != nil {
				own[k] = q
			} else if q := p.resources.limits[k]; q != nil {
				own[k] = q
			}
		}
		if own[k] != nil {
			r.requests[k] = own[k]
		}
		if q := p.resources.limits[k]; q != nil {
			r.limits[k] = q
		}
	}
	return r
}

// Kubelet's conversion of CPUs (pkg/kubelet/cm/helpers_linux.go).
const (
	period       = 100_000 // µs; kubelet's --cpu-cfs-quota-period
	minQuota     = 1000
	sharesPerCPU = 1024
	minShares    = 2
	maxShares    = 262144
)

// annotations are those by which containerd's CRI plugin tells the shim of the sandbox's resources.
func (r resources) annotations() map[string]string {
	milli := func(l list) int64 {
		if q := l["cpu"]; q != nil {
			return whole(q, 1000)
		}
		return 0
	}
	var memory, quota int64
	if q := r.limits["memory"]; q != nil {
		memory = whole(q, 1)
	}
	if cpu := milli(r.limits); cpu != 0 {
		quota = max(times(cpu, period)/1000, minQuota)
	}
	asked := milli(r.requests)
	if r.requests["cpu"] == nil {
		asked = milli(r.limits)
	}
	shares := int64(minShares)
	if asked != 0 {
		shares = min(max(times(asked, sharesPerCPU)/1000, minShares), maxShares)
	}
	out := map[string]string{}
	for k, v := range map[string]int64{
		contract.CRISandboxMemory: memory, contract.CRISandboxCPUQuota: quota,
		contract.CRISandboxCPUPeriod: period, contract.CRISandboxCPUShares: shares,
	} {
		out[k] = strconv.FormatInt(v, 10)
	}
	return out
}

// times multiplies, capping a so that absurd values cannot overflow.
func times(a, b int64) int64 { return min(a, 1<<40) * b }

// CPUs is how many processors the pod asks for: its limit, else what it requests; rounded up.
func (p Pod) CPUs() int {
	number := func(key string) int64 {
		n, _ := strconv.ParseInt(p.Annotations[key], 10, 64) // ours
		return n
	}
	if quota := number(contract.CRISandboxCPUQuota); quota > 0 {
		return int(min((quota+period-1)/period, math.MaxInt32))
	}
	return int((number(contract.CRISandboxCPUShares) + sharesPerCPU - 1) / sharesPerCPU)
}
