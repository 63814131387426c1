// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"fmt"
	"slices"
	"time"
)

// Status is Intel's verdict on a TCB level.
type Status string

// The statuses of Intel's service.
const (
	UpToDate               Status = "UpToDate"
	SWHardeningNeeded      Status = "SWHardeningNeeded"
	ConfigurationNeeded    Status = "ConfigurationNeeded"
	ConfigurationAndSW     Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate              Status = "OutOfDate"
	OutOfDateConfiguration Status = "OutOfDateConfigurationNeeded"
	Revoked                Status = "Revoked"
)

// flaws are the reasons that make up a status.
type flaws struct{ old, configuration, software, revoked bool }

var statusFlaws = map[Status]flaws{
	UpToDate: {}, SWHardeningNeeded: {software: true}, ConfigurationNeeded: {configuration: true},
	ConfigurationAndSW: {configuration: true, software: true}, OutOfDate: {old: true},
	OutOfDateConfiguration: {old: true, configuration: true}, Revoked: {revoked: true},
}

// Known tells whether Intel's service has the status.
func (s Status) Known() bool { _, ok := statusFlaws[s]; return ok }

// status returns the name of the reasons together, as Intel's library converges them: being out of date hides the need
// for hardening of software.
func (f flaws) status() Status {
	switch {
	case f.revoked:
		return Revoked
	case f.old && f.configuration:
		return OutOfDateConfiguration
	case f.old:
		return OutOfDate
	case f.configuration && f.software:
		return ConfigurationAndSW
	case f.configuration:
		return ConfigurationNeeded
	case f.software:
		return SWHardeningNeeded
	}
	return UpToDate
}

func (f flaws) or(g flaws) flaws {
	return flaws{f.old || g.old, f.configuration || g.configuration, f.software || g.software, f.revoked || g.revoked}
}

// verdict are the levels of platform, module and quoting enclave, which count together.
type verdict []level

// status is the worst of all levels.
func (v verdict) status() Status {
	var f flaws
	for _, l := range v {
		f = f.or(statusFlaws[l.Status])
	}
	return f.status()
}

// date is the oldest of all levels.
func (v verdict) date() time.Time {
	var d time.Time
	for _, l := range v {
		d = earlier(d, l.Date)
	}
	return d
}

// advisories are those of all levels, sorted.
func (v verdict) advisories() []string {
	all := []string{}
	for _, l := range v {
		all = append(all, l.Advisories...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// moduleVersion and moduleLevel are the bytes of a TEE TCB SVN that describe the module. From version 1 on, they are
// compared with the module's own levels and not with the platform's.
func moduleVersion(svn [16]byte) byte { return svn[1] }
func moduleLevel(svn [16]byte) int    { return int(svn[0]) }

// platformLevel returns the first level of the sorted list that the platform reaches.
func platformLevel(levels []level, p *platform, tee [16]byte) (level, error) {
	for i, l := range levels {
		sgx, err := components(l.TCB.SGX)
		if err != nil {
			return level{}, fmt.Errorf("level %d: SGX: %w", i, err)
		}
		tdx, err := components(l.TCB.TDX)
		if err != nil {
			return level{}, fmt.Errorf("level %d: TDX: %w", i, err)
		}
		if moduleVersion(tee) > 0 {
			tdx[0], tdx[1] = 0, 0
		}
		if reaches(p.svn, sgx) && p.pceSVN >= l.TCB.PCESVN && reaches(tee, tdx) {
			return l, nil
		}
	}
	return level{}, fmt.Errorf("none of %d levels is reached", len(levels))
}

// svnLevel returns the first level of the sorted list that a security version reaches.
func svnLevel(levels []level, svn int) (level, error) {
	for _, l := range levels {
		if svn >= l.TCB.SVN {
			return l, nil
		}
	}
	return level{}, fmt.Errorf("none of %d levels is reached by security version %d", len(levels), svn)
}

func components(list []component) (out [16]byte, err error) {
	if len(list) != len(out) {
		return out, fmt.Errorf("%d components, not %d", len(list), len(out))
	}
	for i, c := range list {
		if c.SVN < 0 || c.SVN > 0xff {
			return out, fmt.Errorf("component %d has level %d", i+1, c.SVN)
		}
		out[i] = byte(c.SVN)
	}
	return out, nil
}

func reaches(have, want [16]byte) bool {
	for i := range have {
		if have[i] < want[i] {
			return false
		}
	}
	return true
}
