// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"fmt"
	"maps"
	"math"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
)

// Resources converts limits; nil stays nil.
func Resources(in *agent.LinuxResources) (*specs.LinuxResources, error) {
	if in == nil {
		return nil, nil
	}
	bio, err := blockIO(in.BlockIO)
	if err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{
		Devices: each(in.Devices, deviceRule),
		Memory:  memory(in.Memory),
		CPU:     cpu(in.CPU),
		BlockIO: bio,
		Unified: maps.Clone(in.Unified),
		HugepageLimits: each(in.HugepageLimits, func(h *agent.LinuxHugepageLimit) specs.LinuxHugepageLimit {
			return specs.LinuxHugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit}
		}),
	}
	if in.Pids != nil && in.Pids.Limit != 0 {
		r.Pids = &specs.LinuxPids{Limit: new(in.Pids.Limit)}
	}
	if n := in.Network; n != nil {
		r.Network = &specs.LinuxNetwork{
			ClassID: nonZero(n.ClassID),
			Priorities: each(n.Priorities, func(p *agent.LinuxInterfacePriority) specs.LinuxInterfacePriority {
				return specs.LinuxInterfacePriority{Name: p.Name, Priority: p.Priority}
			}),
		}
	}
	return r, nil
}

// deviceRule converts a rule of the device cgroup. The wire has no "any": a rule for type "a", or
// without a number, is for all of them, as -1 is. A rule without a type may have numbers, and is for both kinds then.
func deviceRule(in *agent.LinuxDeviceCgroup) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: in.Allow, Type: in.Type, Access: in.Access}
	if in.Type != "a" {
		// Character device 0:0 and block major 0 do not exist as rules of their own, so 0 with
		// nothing beside it is an absent number.
		if in.Major > 0 {
			r.Major = new(in.Major)
			if in.Minor >= 0 {
				r.Minor = new(in.Minor)
			}
		} else if in.Minor > 0 {
			r.Minor = new(in.Minor)
		}
	}
	return r
}

func memory(in *agent.LinuxMemory) *specs.LinuxMemory {
	if in == nil {
		return nil
	}
	m := &specs.LinuxMemory{
		Limit: nonZero(in.Limit), Reservation: nonZero(in.Reservation), Swap: nonZero(in.Swap),
		//lint:ignore SA1019 the protocol carries it; the runtime refuses it under cgroup v2
		Kernel: nonZero(in.Kernel), KernelTCP: nonZero(in.KernelTCP), Swappiness: nonZero(in.Swappiness),
	}
	if in.DisableOOMKiller {
		m.DisableOOMKiller = new(in.DisableOOMKiller)
	}
	return m
}

func cpu(in *agent.LinuxCPU) *specs.LinuxCPU {
	if in == nil {
		return nil
	}
	return &specs.LinuxCPU{
		Shares: nonZero(in.Shares), Quota: nonZero(in.Quota), Period: nonZero(in.Period),
		RealtimeRuntime: nonZero(in.RealtimeRuntime), RealtimePeriod: nonZero(in.RealtimePeriod),
		Cpus: in.Cpus, Mems: in.Mems,
	}
}

func blockIO(in *agent.LinuxBlockIO) (*specs.LinuxBlockIO, error) {
	if in == nil {
		return nil, nil
	}
	out := &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   each(in.ThrottleReadBpsDevice, throttle),
		ThrottleWriteBpsDevice:  each(in.ThrottleWriteBpsDevice, throttle),
		ThrottleReadIOPSDevice:  each(in.ThrottleReadIOPSDevice, throttle),
		ThrottleWriteIOPSDevice: each(in.ThrottleWriteIOPSDevice, throttle),
	}
	var err error
	if out.Weight, err = weight(in.Weight); err != nil {
		return nil, err
	}
	if out.LeafWeight, err = weight(in.LeafWeight); err != nil {
		return nil, err
	}
	for _, d := range in.WeightDevice {
		w := specs.LinuxWeightDevice{}
		w.Major, w.Minor = d.Major, d.Minor
		if w.Weight, err = weight(d.Weight); err != nil {
			return nil, err
		}
		if w.LeafWeight, err = weight(d.LeafWeight); err != nil {
			return nil, err
		}
		out.WeightDevice = append(out.WeightDevice, w)
	}
	return out, nil
}

func weight(w uint32) (*uint16, error) {
	if w > math.MaxUint16 {
		return nil, fmt.Errorf("block I/O weight %d is above %d: %w", w, math.MaxUint16, errdefs.ErrInvalidArgument)
	}
	return nonZero(uint16(w)), nil
}

func throttle(in *agent.LinuxThrottleDevice) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: in.Rate}
	d.Major, d.Minor = in.Major, in.Minor
	return d
}

func nonZero[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
