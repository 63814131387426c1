// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// field is one key of the schema.
type field struct {
	key    string            // "section.key"
	ptr    func(*Config) any // where it lives: *string, *bool, *int, *uint64, *Duration or *[]string
	rule   rule              // what it may be
	by     setBy             // who may set it
	needed bool              // an empty string is refused
}

// row makes a row of the schema.
func row(name string, ptr func(*Config) any, r rule, by setBy, needed bool) field {
	return field{name, ptr, r, by, needed}
}

type setBy int

const (
	byFile setBy = iota // only configuration files: paths, limits, the allow-list itself
	byPod               // also annotations, when the allow-list names the key
)

// rule says in words what a value may be, and checks it. check returns "" or the problem.
type rule struct {
	expect string
	check  func(v any) string
}

var schema = []field{
	row("hypervisor.type", func(c *Config) any { return &c.Hypervisor.Type }, oneOf("qemu", "clh"), byFile, true),
	row("hypervisor.path", func(c *Config) any { return &c.Hypervisor.Path }, absPath("the VMM binary"), byFile, true),
	row("hypervisor.machine", func(c *Config) any { return &c.Hypervisor.Machine },
		word("a machine type, as in \"q35\""), byFile, false),
	row("hypervisor.accel", func(c *Config) any { return &c.Hypervisor.Accel }, oneOf("", "kvm", "tcg"), byFile, false),
	row("hypervisor.platform", func(c *Config) any { return &c.Hypervisor.Platform },
		oneOf("none", PlatformVTPM, "snp", "tdx"), byFile, true),
	row("hypervisor.guest_dir", func(c *Config) any { return &c.Hypervisor.GuestDir },
		absPath("the guest image's directory"), byFile, false),
	row("hypervisor.kernel", func(c *Config) any { return &c.Hypervisor.Kernel },
		absPath("the guest kernel"), byFile, false),
	row("hypervisor.initrd", func(c *Config) any { return &c.Hypervisor.Initrd },
		absPath("the guest initramfs"), byFile, false),
	row("hypervisor.firmware", func(c *Config) any { return &c.Hypervisor.Firmware },
		absPath("the VM's firmware"), byFile, false),
	row("hypervisor.kernel_params", func(c *Config) any { return &c.Hypervisor.KernelParams }, line(1024), byPod, false),
	row("hypervisor.initdata", func(c *Config) any { return &c.Hypervisor.Initdata },
		absPath("an initdata document (TOML)"), byFile, false),
	row("hypervisor.cpu_model", func(c *Config) any { return &c.Hypervisor.CPUModel },
		word("a CPU model, as in \"EPYC-v4\""), byFile, false),
	row("hypervisor.default_vcpus", func(c *Config) any { return &c.Hypervisor.DefaultVCPUs },
		between(1, 1024), byPod, false),
	row("hypervisor.max_vcpus", func(c *Config) any { return &c.Hypervisor.MaxVCPUs }, between(0, 1024), byFile, false),
	row("hypervisor.default_memory_mib", func(c *Config) any { return &c.Hypervisor.DefaultMemoryMiB },
		between(MinMemoryMiB, 16<<20), byPod, false),
	row("hypervisor.max_memory_mib", func(c *Config) any { return &c.Hypervisor.MaxMemoryMiB },
		zeroOr(MinMemoryMiB, 16<<20), byFile, false),
	row("hypervisor.overhead_memory_mib", func(c *Config) any { return &c.Hypervisor.OverheadMemoryMiB },
		between(0, 64<<10), byFile, false),
	row("hypervisor.block_bus", func(c *Config) any { return &c.Hypervisor.BlockBus },
		oneOf("virtio-scsi", "virtio-blk"), byFile, true),
	row("hypervisor.hotplug_ports", func(c *Config) any { return &c.Hypervisor.HotplugPorts },
		between(0, 32), byFile, false),
	row("hypervisor.boot_timeout", func(c *Config) any { return &c.Hypervisor.BootTimeout },
		lasting(time.Second, time.Hour), byPod, false),
	row("hypervisor.snp_guest_policy", func(c *Config) any { return &c.Hypervisor.SNPGuestPolicy },
		snpPolicy(), byFile, false),
	row("hypervisor.snp_id_block", func(c *Config) any { return &c.Hypervisor.SNPIDBlock },
		oneOf("anonymous", "author", "none"), byFile, false),
	row("hypervisor.insecure_snp_debug", func(c *Config) any { return &c.Hypervisor.InsecureSNPDebug },
		truth(), byFile, false),
	row("hypervisor.tdx_quote_socket", func(c *Config) any { return &c.Hypervisor.TDXQuoteSocket },
		quoteSocket(), byFile, false),
	row("hypervisor.first_user", func(c *Config) any { return &c.Hypervisor.FirstUser },
		between(1, 1<<32-2), byFile, false),
	row("hypervisor.users", func(c *Config) any { return &c.Hypervisor.Users }, between(1, 1<<24), byFile, false),
	row("hypervisor.extra_paths", func(c *Config) any { return &c.Hypervisor.ExtraPaths },
		absPaths("files and directories that the VMM needs to start"), byFile, false),
	row("hypervisor.seccomp", func(c *Config) any { return &c.Hypervisor.Seccomp }, truth(), byFile, false),
	row("hypervisor.landlock", func(c *Config) any { return &c.Hypervisor.Landlock }, truth(), byFile, false),
	row("hypervisor.insecure_debug_console", func(c *Config) any { return &c.Hypervisor.InsecureDebugConsole },
		truth(), byFile, false),

	row("runtime.state_dir", func(c *Config) any { return &c.Runtime.StateDir },
		absPath("a directory on a tmpfs"), byFile, true),
	row("runtime.layer_cache", func(c *Config) any { return &c.Runtime.LayerCache },
		absPath("a directory on a disk"), byFile, true),
	row("runtime.layer_cache_size_mib", func(c *Config) any { return &c.Runtime.LayerCacheSizeMiB },
		zeroOr(64, 16<<20), byFile, false),
	row("runtime.writable_layer", func(c *Config) any { return &c.Runtime.WritableLayer },
		oneOf(WritableDisk, WritableMemory), byFile, true),
	row("runtime.upper_size_mib", func(c *Config) any { return &c.Runtime.UpperSizeMiB }, zeroOr(16, 1<<20), byPod, false),
	row("runtime.scratch_dir", func(c *Config) any { return &c.Runtime.ScratchDir },
		absPath("a directory on a disk"), byFile, true),
	row("runtime.max_copy_mib", func(c *Config) any { return &c.Runtime.MaxCopyMiB }, between(0, 16<<10), byFile, false),
	row("runtime.empty_dir_size_mib", func(c *Config) any { return &c.Runtime.EmptyDirSizeMiB },
		zeroOr(16, 1<<20), byPod, false),
	row("runtime.host_path", func(c *Config) any { return &c.Runtime.HostPath },
		oneOf("read-only", "writable", HostPathLive, "refused"), byFile, true),
	row("runtime.binds", func(c *Config) any { return &c.Runtime.Binds },
		oneOf("", BindsLive, BindsReadOnly), byFile, false),
	row("runtime.keep_files", func(c *Config) any { return &c.Runtime.KeepFiles },
		oneOf("", KeepFiles, DropFiles), byFile, false),
	row("runtime.kubelet_dirs", func(c *Config) any { return &c.Runtime.KubeletDirs },
		absPaths("root directories of kubelets"), byFile, false),
	row("runtime.engine_dirs", func(c *Config) any { return &c.Runtime.EngineDirs },
		absPaths("root directories of container engines"), byFile, false),
	row("runtime.virtiofsd", func(c *Config) any { return &c.Runtime.Virtiofsd }, absPath("virtiofsd"), byFile, false),
	row("runtime.rlimits", func(c *Config) any { return &c.Runtime.Rlimits }, rlimits(), byFile, false),
	row("runtime.create_timeout", func(c *Config) any { return &c.Runtime.CreateTimeout },
		lasting(time.Second, time.Hour), byPod, false),
	row("runtime.stop_timeout", func(c *Config) any { return &c.Runtime.StopTimeout },
		lasting(100*time.Millisecond, time.Hour), byPod, false),
	row("runtime.health_interval", func(c *Config) any { return &c.Runtime.HealthInterval },
		lasting(time.Second, time.Hour), byFile, false),
	row("runtime.health_misses", func(c *Config) any { return &c.Runtime.HealthMisses }, between(0, 1000), byFile, false),
	row("runtime.template", func(c *Config) any { return &c.Runtime.Template },
		oneOf(TemplatePrivate, TemplateOff), byFile, true),
	row("runtime.standby", func(c *Config) any { return &c.Runtime.Standby }, between(0, 16), byFile, false),
	row("runtime.log_level", func(c *Config) any { return &c.Runtime.LogLevel },
		oneOf("error", "warn", "info", "debug"), byFile, true),
	row("runtime.enable_annotations", func(c *Config) any { return &c.Runtime.EnableAnnotations },
		podKeys(), byFile, false),
	row("runtime.rehearse", func(c *Config) any {
		return &c.Runtime.Rehearse
	}, absPath("a configuration file for platform snp or tdx"), byFile, false),

	row("network.model", func(c *Config) any { return &c.Network.Model }, oneOf("tcfilter", "none"), byFile, true),
	row("network.queues_per_nic", func(c *Config) any { return &c.Network.QueuesPerNIC }, between(1, 16), byFile, false),

	row("vtpm.ca", func(c *Config) any { return &c.VTPM.CA },
		absPath("the directory of a CA (coco node tpm-ca)"), byFile, false),
	row("vtpm.program", func(c *Config) any { return &c.VTPM.Program }, absPath("swtpm"), byFile, true),
}

// Keys lists every key as "section.key", in the order of the documentation.
func Keys() []string {
	keys := make([]string, len(schema))
	for i, f := range schema {
		keys[i] = f.key
	}
	return keys
}

// PodKeys lists the keys that runtime.enable_annotations may name.
func PodKeys() []string {
	var keys []string
	for _, f := range schema {
		if f.by == byPod {
			keys = append(keys, f.key)
		}
	}
	return keys
}

func lookup(key string) (field, bool) {
	i := slices.IndexFunc(schema, func(f field) bool { return f.key == key })
	if i < 0 {
		return field{}, false
	}
	return schema[i], true
}

// problem says what is wrong with the field's value in c, or "".
func (f field) problem(c *Config) string {
	var v any
	switch p := f.ptr(c).(type) {
	case *string:
		if *p == "" {
			if f.needed {
				return "must not be empty"
			}
			return ""
		}
		v = *p
	case *int:
		v = int64(*p)
	case *uint64:
		v = int64(*p) //nolint:gosec // set from an int64, never negative
	case *Duration:
		v = *p
	case *bool:
		v = *p
	case *[]string:
		v = *p
	}
	return f.rule.check(v)
}

func oneOf(words ...string) rule {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	return rule{"one of " + strings.Join(quoted, ", "), func(v any) string {
		if s := v.(string); !slices.Contains(words, s) {
			return fmt.Sprintf("%q is not known", s)
		}
		return ""
	}}
}

func absPath(what string) rule {
	return rule{"the absolute path of " + what, func(v any) string {
		s := v.(string)
		switch {
		case strings.ContainsAny(s, "\x00\n"):
			return fmt.Sprintf("%q holds a control character", s)
		case !filepath.IsAbs(s):
			return fmt.Sprintf("%q is not an absolute path", s)
		}
		return ""
	}}
}

func absPaths(what string) rule {
	one := absPath(what)
	return rule{"a list of absolute paths of " + what, func(v any) string {
		for _, s := range v.([]string) {
			if s == "" || filepath.Clean(s) == "/" {
				return fmt.Sprintf("%q is no directory of its own", s)
			}
			if problem := one.check(s); problem != "" {
				return problem
			}
		}
		return ""
	}}
}

// word is a token that ends up in the VMM's comma-separated arguments.
func word(what string) rule {
	return rule{what + ", of letters, digits and .-_+", func(v any) string {
		s := v.(string)
		for _, r := range s {
			ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_+", r)
			if !ok {
				return fmt.Sprintf("%q holds %q", s, r)
			}
		}
		return ""
	}}
}

func line(limit int) rule {
	return rule{fmt.Sprintf("one line of at most %d printable ASCII characters", limit), func(v any) string {
		s := v.(string)
		if len(s) > limit {
			return fmt.Sprintf("is %d bytes long", len(s))
		}
		for _, r := range s {
			if r < ' ' || r > '~' {
				return fmt.Sprintf("%q holds %q", s, r)
			}
		}
		return ""
	}}
}

func between(lo, hi int64) rule {
	return rule{fmt.Sprintf("an integer from %d to %d", lo, hi), func(v any) string {
		switch n := v.(int64); {
		case n < lo:
			return fmt.Sprintf("%d is below %d", n, lo)
		case n > hi:
			return fmt.Sprintf("%d is above %d", n, hi)
		}
		return ""
	}}
}

func zeroOr(lo, hi int64) rule {
	r := between(lo, hi)
	return rule{"0 or " + r.expect, func(v any) string {
		if v.(int64) == 0 {
			return ""
		}
		return r.check(v)
	}}
}

func lasting(lo, hi Duration) rule {
	return rule{fmt.Sprintf("a duration from %q to %q, as in \"60s\"", lo, hi), func(v any) string {
		switch d := v.(Duration); {
		case d < lo:
			return fmt.Sprintf("%q is below %q", d, lo)
		case d > hi:
			return fmt.Sprintf("%q is above %q", d, hi)
		}
		return ""
	}}
}

func truth() rule {
	return rule{"true or false", func(any) string { return "" }}
}

// podKeys checks the allow-list: it may name only keys that are harmless in a pod's hands. The
// expectation is worded without the list because the list is made from the schema.
func podKeys() rule {
	return rule{"a list of \"section.key\" that pods may set (see docs/configuration.md)", func(v any) string {
		for _, k := range v.([]string) {
			f, ok := lookupPod(k)
			switch {
			case !ok:
				return fmt.Sprintf("%q is not a key", k)
			case f != byPod:
				return fmt.Sprintf("%q may be set by the administrator only", k)
			}
		}
		return ""
	}}
}

// lookupPod is a variable because schema and podKeys refer to each other.
var lookupPod func(key string) (setBy, bool)

func init() {
	lookupPod = func(key string) (setBy, bool) {
		f, ok := lookup(key)
		return f.by, ok
	}
}
