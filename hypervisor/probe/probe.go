// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package probe reports what a host can run: which platforms, by which means, and for each "no" how to
// change that. It only looks; it changes nothing and loads nothing.
//
// Everything is read below a root directory and through the functions of Host, so that tests can describe other
// hosts by a tree of files.
package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coco-shim/coco/internal/cpuid"
	"github.com/coco-shim/coco/internal/kvm"
)

// Status is the outcome of one check.
type Status string

// The outcomes.
const (
	Yes  Status = "yes"
	No   Status = "no"
	Note Status = "note" // neither good nor bad
)

// Finding is the outcome of one check, in words.
type Finding struct {
	Name   string `json:"name"`   // stable, for machines: "kvm", "snp.cpu"
	Status Status `json:"status"` //
	Detail string `json:"detail"` // what was found
	Fix    string `json:"fix,omitempty"`
}

// Platform says whether pods of a platform can run.
type Platform struct {
	Name    string   `json:"name"` // as in the configuration: "none", "snp", "tdx"
	Usable  bool     `json:"usable"`
	How     string   `json:"how,omitempty"`     // "KVM" or "TCG"
	Missing []string `json:"missing,omitempty"` // names of findings
}

// Report is everything that was found.
type Report struct {
	Platforms []Platform `json:"platforms"`
	Findings  []Finding  `json:"findings"`
}

// QEMU describes a QEMU binary by its own answers.
type QEMU struct {
	Major, Minor, Micro int
	Objects             []string // types that -object takes
}

// Host is the machine to look at.
type Host struct {
	Root  string // of its file system
	CPUID func(leaf, sub uint32) cpuid.Regs
	// QEMU asks a binary.
	QEMU func(ctx context.Context, path string) (QEMU, error)
	// CLH asks a Cloud Hypervisor binary; nil: there is none.
	CLH func(ctx context.Context, path string) (CLH, error)
	// Version runs a program with --version and returns the first line; an error that wraps
	// exec.ErrNotFound says that there is no such program.
	Version func(ctx context.Context, program string) (string, error)
	// SEVStatus asks the security processor for its firmware's version; nil: it is not asked.
	SEVStatus func() (string, error)
}

// Options say what to check besides the machine.
type Options struct {
	QEMUPath string
	// CLHPath is Cloud Hypervisor's binary. Driver says that it is what pods run with: "clh"; otherwise it
	// is QEMU, and Cloud Hypervisor is only mentioned.
	CLHPath, Driver string
	// Checks are run in order, for things that others know how to check: name and function.
	Checks []Check
}

// Check is a check of something that this package knows nothing of.
type Check struct {
	Name     string
	Required bool // without it nothing runs
	Run      func() (detail string, err error)
}

type prober struct {
	host     Host
	report   Report
	required []string // findings that every platform needs
}

// Run looks at everything.
func Run(ctx context.Context, h Host, o Options) Report {
	p := &prober{host: h}
	kvmErr := kvm.Usable(h.Root)
	if kvmErr == nil {
		p.yes("kvm", "usable")
	} else {
		without := "not usable: VMs run under TCG, about ten times slower"
		if o.Driver == driverCLH {
			without = "not usable: Cloud Hypervisor runs on KVM only"
		}
		p.add("kvm", No, without, kvmErr.Error())
	}
	q := p.qemu(ctx, o.QEMUPath)
	c := p.clh(ctx, o)
	p.devices()
	p.containerd(ctx)
	for _, c := range o.Checks {
		p.check(c)
	}
	p.environment()
	snp, tdx := p.snp(q), p.tdx(q)
	if o.Driver == driverCLH {
		snp, tdx = p.clhPlatforms(c, snp)
	}
	how := "TCG"
	switch {
	case kvmErr == nil:
		how = "KVM"
	case o.Driver == driverCLH: // there is no other way
		how = ""
	}
	p.platforms(how, snp, tdx)
	return p.report
}

func (p *prober) add(name string, s Status, detail, fix string) bool {
	p.report.Findings = append(p.report.Findings, Finding{name, s, detail, fix})
	return s != No
}

func (p *prober) yes(name, format string, args ...any) bool {
	return p.add(name, Yes, fmt.Sprintf(format, args...), "")
}

// need is a finding that every platform depends on.
func (p *prober) need(name string) { p.required = append(p.required, name) }

func (p *prober) platforms(how string, snp, tdx []string) {
	missing := p.missing(p.required)
	plain := Platform{Name: "none", Usable: len(missing) == 0, How: how, Missing: missing}
	p.report.Platforms = []Platform{plain, p.tee("snp", snp), p.tee("tdx", tdx)}
}

func (p *prober) tee(name string, needs []string) Platform {
	missing := p.missing(append(append([]string{"kvm"}, needs...), p.required...))
	t := Platform{Name: name, Usable: len(missing) == 0, Missing: missing}
	if t.Usable {
		t.How = "KVM"
	}
	return t
}

// missing returns those of the names whose finding is No.
func (p *prober) missing(names []string) (out []string) {
	for _, n := range names {
		for _, f := range p.report.Findings {
			if f.Name == n && f.Status == No && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func (p *prober) qemu(ctx context.Context, path string) *QEMU {
	if path == "" {
		p.add("qemu", No, "none is configured", "install qemu-system-x86 and set hypervisor.path")
		return nil
	}
	q, err := p.host.QEMU(ctx, path)
	if err != nil {
		p.add("qemu", No, fmt.Sprintf("%s: %v", path, err),
			"install qemu-system-x86 (7.2 or later), or set hypervisor.path in the configuration")
		return nil
	}
	version := fmt.Sprintf("%s, version %d.%d.%d", path, q.Major, q.Minor, q.Micro)
	if !q.atLeast(7, 2) {
		p.add("qemu", No, version, "install QEMU 7.2 or later")
		return nil
	}
	p.yes("qemu", "%s", version)
	return &q
}

func (q *QEMU) atLeast(major, minor int) bool {
	return q.Major > major || q.Major == major && q.Minor >= minor
}

func (q *QEMU) has(object string) bool {
	for _, o := range q.Objects {
		if o == object {
			return true
		}
	}
	return false
}

// devices are nodes in /dev.
func (p *prober) devices() {
	p.need("tun")
	if p.exists("dev/net/tun") {
		p.yes("tun", "/dev/net/tun: pods can have a network")
	} else {
		p.add("tun", No, "no /dev/net/tun", "modprobe tun")
	}
	if p.exists("dev/vhost-vsock") {
		p.add("vhost-vsock", Note, "present; the QEMU driver uses virtio-serial anyway", "")
	} else {
		p.add("vhost-vsock", Note, "no /dev/vhost-vsock; not needed, the QEMU driver uses virtio-serial", "")
	}
	groups, _ := os.ReadDir(p.path("sys/kernel/iommu_groups")) // absent: none
	switch {
	case len(groups) == 0:
		p.add("vfio", Note, "no IOMMU groups: no devices can be given to pods",
			"enable the IOMMU in the firmware and, on Intel, boot with intel_iommu=on")
	case !p.exists("dev/vfio/vfio"):
		p.add("vfio", Note, fmt.Sprintf("%d IOMMU groups, but no /dev/vfio/vfio", len(groups)), "modprobe vfio-pci")
	default:
		p.add("vfio", Note, fmt.Sprintf("%d IOMMU groups", len(groups)), "")
	}
	p.hugepages()
}

func (p *prober) hugepages() {
	const dir = "sys/kernel/mm/hugepages"
	sizes, _ := os.ReadDir(p.path(dir)) // absent: none
	var found []string
	for _, s := range sizes {
		if n := p.read(filepath.Join(dir, s.Name(), "nr_hugepages")); n != "" && n != "0" {
			found = append(found, n+" of "+strings.TrimPrefix(s.Name(), "hugepages-"))
		}
	}
	if len(found) == 0 {
		p.add("hugepages", Note, "none reserved; not needed", "")
		return
	}
	p.add("hugepages", Note, strings.Join(found, ", ")+" reserved", "")
}

func (p *prober) containerd(ctx context.Context) {
	v, err := p.host.Version(ctx, "containerd")
	if err != nil {
		p.add("containerd", No, err.Error(),
			"install containerd 1.6.20 or later; ctr, nerdctl, Docker and Kubernetes all use it")
	} else {
		p.yes("containerd", "%s", v)
	}
	if v, err = p.host.Version(ctx, "containerd-shim-coco-v2"); err != nil {
		p.add("shim", No, err.Error(), "make install; containerd looks for it in its PATH")
	} else {
		p.yes("shim", "%s", v)
	}
}

// ErrUntried is the error of a check that cannot be made, as when it needs root.
var ErrUntried = errors.New("not tried")

func (p *prober) check(c Check) {
	if c.Required {
		p.need(c.Name)
	}
	detail, err := c.Run()
	if errors.Is(err, ErrUntried) {
		p.add(c.Name, Note, detail+": "+err.Error(), "run coco check as root")
		return
	}
	if err != nil {
		p.add(c.Name, No, detail, err.Error())
		return
	}
	p.yes(c.Name, "%s", detail)
}

// environment finds out whether this host is hardware, a VM or a confidential guest.
func (p *prober) environment() {
	switch {
	case p.flag("tdx_guest") || p.exists("dev/tdx_guest"):
		p.add("machine", Note, "this is itself a TDX guest: it cannot start confidential VMs of its own", "")
	case p.exists("dev/sev-guest"):
		p.add("machine", Note, "this is itself an SNP guest: it cannot start confidential VMs of its own", "")
	case p.flag("hypervisor"):
		p.add("machine", Note, "this is a virtual machine: VMs in it need nested virtualization", "")
	default:
		p.add("machine", Note, "this is hardware, not a virtual machine", "")
	}
}

func (p *prober) path(name string) string { return filepath.Join(p.host.Root, name) }

func (p *prober) exists(name string) bool {
	_, err := os.Stat(p.path(name))
	return err == nil
}

// read returns a small file's content without the space around it, "" if there is none.
func (p *prober) read(name string) string {
	b, err := os.ReadFile(p.path(name))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

func (p *prober) flag(name string) bool {
	for line := range strings.Lines(p.read("proc/cpuinfo")) {
		if rest, ok := strings.CutPrefix(line, "flags"); ok {
			for _, f := range strings.Fields(rest) {
				if f == name {
					return true
				}
			}
			return false // all processors are alike
		}
	}
	return false
}

// enabled reads a module's parameter: "Y" or "1".
func (p *prober) enabled(module, param string) bool {
	v := p.read("sys/module/" + module + "/parameters/" + param)
	return v == "Y" || v == "1"
}
