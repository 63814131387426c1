// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
)

// Shape is a VM's fixed size.
type Shape struct {
	VCPUs     int
	MemoryMiB uint64
}

// Machine bounds what a pod can get where the configuration names no maximum.
type Machine struct {
	CPUs      int
	MemoryMiB uint64
}

// annCRIO are the annotations by which CRI-O tells the same: JSON of CRI's LinuxContainerResources.
var annCRIO = []string{contract.CRIOPodResourcesNew, contract.CRIOPodResources}

const (
	mib             = 1 << 20
	defaultPeriod   = 100_000 // µs, the kernel's
	sharesPerCPU    = 1024
	unlimitedMemory = 1 << 60 // engines write "no limit" as a number near 2^63
)

// memoryStep is the step to which memory is rounded up, in MiB. A VM of any size is at most that much larger than
// necessary, so that one overhead in a RuntimeClass holds for all pods.
const memoryStep = 128

// pageTableShare is the part of its memory that the guest's kernel needs to describe it: 64 bytes per page
// of 4 KiB.
const pageTableShare = 64

// limits are a pod's limits; zero is no limit.
type limits struct {
	cpus   int   // may use
	wanted int   // asks for, without being limited to it
	memory int64 // bytes
}

// ShapeOf decides the size of a pod's VM.
//
// The limits are those of the CRI annotations when there are any, else those of the specification.
// vCPUs: the CPU limit rounded up to whole CPUs; without a limit the requested share of CPUs or the
// configured default, whichever is more; then up to 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, …, but never
// above the maximum (a limit above it simply is not reached). Memory: the limit, or the configured
// default, plus the configured overhead and a 64th for what the guest's kernel needs to keep account of
// it, rounded up to 128 MiB. More memory than the maximum is refused: a container must not find less
// memory than its limit promises.
func ShapeOf(h configs.Hypervisor, m Machine, s *specs.Spec) (Shape, error) {
	l, err := limitsOf(s)
	if err != nil {
		return Shape{}, err
	}
	vcpus := max(h.DefaultVCPUs, l.wanted)
	if l.cpus > 0 {
		vcpus = l.cpus
	}
	maxVCPUs := h.MaxVCPUs
	if maxVCPUs == 0 {
		maxVCPUs = max(m.CPUs, 1)
	}
	memory := h.DefaultMemoryMiB
	if l.memory > 0 {
		memory = (uint64(l.memory) + mib - 1) / mib
	}
	total := roundMemory(memory + memory/pageTableShare + h.OverheadMemoryMiB)
	maxMemory, whose := h.MaxMemoryMiB, "hypervisor.max_memory_mib"
	if maxMemory == 0 {
		maxMemory, whose = m.MemoryMiB, "the host's memory"
	}
	if total > maxMemory {
		return Shape{}, fmt.Errorf("the pod's memory of %d MiB with an overhead of %d MiB makes a VM of %d MiB, above %s "+
			"of %d MiB: lower the limit or raise the maximum: %w",
			memory, h.OverheadMemoryMiB, total, whose, maxMemory, errdefs.ErrInvalidArgument)
	}
	return Shape{VCPUs: configs.RoundVCPUs(vcpus, maxVCPUs), MemoryMiB: total}, nil
}

func roundMemory(n uint64) uint64 { return (n + memoryStep - 1) / memoryStep * memoryStep }

// limitsOf reads the limits of a pod: annotations first, then the specification's resources.
func limitsOf(s *specs.Spec) (limits, error) {
	if s == nil {
		return limits{}, nil
	}
	a := s.Annotations
	_, hasMemory := a[contract.CRISandboxMemory]
	_, hasQuota := a[contract.CRISandboxCPUQuota]
	_, hasShares := a[contract.CRISandboxCPUShares]
	if hasMemory || hasQuota || hasShares {
		return annotated(a)
	}
	for _, key := range annCRIO {
		if text := a[key]; text != "" {
			return crioLimits(key, text)
		}
	}
	if s.Linux == nil || s.Linux.Resources == nil {
		return limits{}, nil
	}
	var l limits
	if m := s.Linux.Resources.Memory; m != nil && m.Limit != nil && *m.Limit < unlimitedMemory {
		l.memory = *m.Limit
	}
	if c := s.Linux.Resources.CPU; c != nil {
		l.cpus, l.wanted = cpus(deref(c.Quota), deref(c.Period), deref(c.Shares))
	}
	return l, nil
}

func annotated(a map[string]string) (limits, error) {
	var errs []error
	number := func(key string) int64 {
		v, ok := a[key]
		if !ok {
			return 0
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("annotation %s: %q is not a number: %w", key, v, errdefs.ErrInvalidArgument))
		}
		return n
	}
	var l limits
	if m := number(contract.CRISandboxMemory); m > 0 && m < unlimitedMemory {
		l.memory = m
	}
	period, shares := number(contract.CRISandboxCPUPeriod), number(contract.CRISandboxCPUShares)
	l.cpus, l.wanted = cpus(number(contract.CRISandboxCPUQuota), uint64(max(period, 0)), uint64(max(shares, 0)))
	return l, errors.Join(errs...)
}

// crioLimits reads what CRI-O says of a pod.
func crioLimits(key, text string) (limits, error) {
	var r struct {
		Period int64 `json:"cpu_period"`
		Quota  int64 `json:"cpu_quota"`
		Shares int64 `json:"cpu_shares"`
		Memory int64 `json:"memory_limit_in_bytes"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return limits{}, fmt.Errorf("annotation %s: %w: %w", key, err, errdefs.ErrInvalidArgument)
	}
	var l limits
	if r.Memory > 0 && r.Memory < unlimitedMemory {
		l.memory = r.Memory
	}
	l.cpus, l.wanted = cpus(r.Quota, uint64(max(r.Period, 0)), uint64(max(r.Shares, 0)))
	return l, nil
}

// cpus is the number of CPUs that a quota allows, and the number that shares ask for.
func cpus(quota int64, period, shares uint64) (limit, wanted int) {
	if period == 0 {
		period = defaultPeriod
	}
	const most = 1 << 20
	if quota > 0 {
		limit = int(min((uint64(quota)-1)/period+1, most))
	}
	if shares > 0 {
		wanted = int(min((shares-1)/sharesPerCPU+1, most))
	}
	return limit, wanted
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
