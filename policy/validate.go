// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxProblems bounds an error of Validate.
const maxProblems = 20

// problems collects what is wrong, each with the path of its member.
type problems []error

func (p *problems) add(at, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...)))
}

func (p problems) err() error {
	if len(p) > maxProblems {
		p = append(p[:maxProblems:maxProblems], fmt.Errorf("and %d more", len(p)-maxProblems))
	}
	return errors.Join(p...)
}

// Validate checks what the format alone does not, and returns all problems.
func (p *Policy) Validate() error { return p.problems(p.azureProblems(p.sealedProblems())).err() }

// problems adds to out. The guest's agent runs these checks alone (Load), because each byte of it counts.
func (p *Policy) problems(out problems) problems {
	if p.APIVersion != APIVersion {
		out.add("apiVersion", "is %s, known is %q", clip(p.APIVersion), APIVersion)
	}
	out.pod(&p.Pod)
	names, volumes := map[string]bool{}, map[string]bool{}
	for i := range p.Volumes {
		at := "volumes[" + strconv.Itoa(i) + "]"
		out.name(at+".name", p.Volumes[i].Name, volumes)
		out.volume(at, &p.Volumes[i])
	}
	apps := false
	for i := range p.Containers {
		c := &p.Containers[i]
		at := "containers[" + strconv.Itoa(i) + "]"
		out.name(at+".name", c.Name, names)
		out.container(at, c, volumes)
		out.secrets(at+".secrets", c)
		if l := c.Linux.PIDs; l != "" && l != PodPIDs && (l == c.Name || !slices.ContainsFunc(p.Containers,
			func(o Container) bool { return o.Name == l })) {
			out.add(at+".linux.pids", "%s is no other container of the pod", clip(l))
		}
		if apps && c.Kind != App {
			out.add(at+".kind", "comes after a container of kind %q", App)
		}
		apps = apps || c.Kind == App
	}
	out.pulls(p.Containers)
	out.workloadPort(p)
	return out
}

// name checks a name that is unique among its like.
func (p *problems) name(at, name string, seen map[string]bool) {
	switch {
	case !isName(name):
		p.add(at, "%s is no DNS name", clip(name))
	case seen[name]:
		p.add(at, "%s comes a second time", clip(name))
	}
	seen[name] = true
}

func (p *problems) pod(pod *Pod) {
	p.value("pod.hostname", pod.Hostname)
	p.keys("pod.sysctls", pod.Sysctls)
	if pod.DNS.FromHost && len(pod.DNS.Lines) > 0 {
		p.add("pod.dns", "has both fromHost and lines")
	}
	seen := map[string]bool{}
	for i, n := range pod.Network.Interfaces {
		at := "pod.network.interfaces[" + strconv.Itoa(i) + "]"
		if n.Name == "" || len(n.Name) > 15 || n.Name == "lo" || strings.ContainsAny(n.Name, "/ \t\n") || seen[n.Name] {
			p.add(at+".name", "%s is no name of an interface, is \"lo\", or comes a second time", clip(n.Name))
		}
		seen[n.Name] = true
		for _, a := range n.Addresses {
			prefix, err := netip.ParsePrefix(a)
			if err != nil || prefix.Addr().IsLoopback() || prefix.String() != a {
				p.add(at+".addresses", "%s is no address with a prefix length in its shortest form, or a loopback address",
					clip(a))
			}
		}
	}
	if slices.Contains(pod.PortForward, 0) {
		p.add("pod.portForward", "has port 0")
	}
}

func (p *problems) container(at string, c *Container, volumes map[string]bool) {
	p.oneOf(at+".kind", c.Kind, App, Init, Sidecar)
	p.oneOf(at+".restart", c.Restart, Never, OnFailure, Always)
	p.image(at+".image", c.Image)
	p.process(at+".process", &c.Process)
	p.linux(at+".linux", &c.Linux)
	for i := range c.Mounts {
		p.mount(at+".mounts["+strconv.Itoa(i)+"]", &c.Mounts[i], volumes)
	}
	p.paths(at+".disks", c.Disks)
	keys := map[string]bool{}
	for i, a := range c.Annotations {
		at := at + ".annotations[" + strconv.Itoa(i) + "]"
		if a.Key == "" || keys[a.Key] {
			p.add(at+".key", "%s is empty or comes a second time", clip(a.Key))
		}
		keys[a.Key] = true
		p.value(at, a.Value)
	}
	p.workload(at+".workload", c)
	if c.Allow.Exec.Any && len(c.Allow.Exec.Commands) > 0 {
		p.add(at+".allow.exec", "has both any and commands")
	}
	for i, e := range c.Allow.Exec.Commands {
		if len(e.Args) == 0 {
			p.add(at+".allow.exec.commands["+strconv.Itoa(i)+"].args", "is empty")
		}
	}
}

func (p *problems) process(at string, c *Process) {
	if len(c.Args) == 0 {
		p.add(at+".args", "is empty")
	}
	if !path.IsAbs(c.Cwd) || path.Clean(c.Cwd) != c.Cwd {
		p.add(at+".cwd", "%s is no absolute path in its shortest form", clip(c.Cwd))
	}
	names := map[string]bool{}
	for i, e := range c.Env {
		at := at + ".env[" + strconv.Itoa(i) + "]"
		switch {
		case e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || names[e.Name]:
			p.add(at+".name", "%s is no name of a variable or comes a second time", clip(e.Name))
		case literalOnly(e.Name) && e.Is == nil:
			p.add(at, "%s decides which code runs and takes a literal value only", clip(e.Name))
		}
		names[e.Name] = true
		p.value(at, e.Value)
	}
	types := map[string]bool{}
	for i, l := range c.Rlimits.Limits {
		if !strings.HasPrefix(l.Type, "RLIMIT_") || types[l.Type] {
			p.add(at+".rlimits.limits["+strconv.Itoa(i)+"].type", "%s is no limit's name or comes a second time", clip(l.Type))
		}
		types[l.Type] = true
	}
}

// literalOnly says which variables decide about code that is loaded.
func literalOnly(name string) bool { return name == "PATH" || strings.HasPrefix(name, "LD_") }

func (p *problems) linux(at string, l *Linux) {
	if len(l.Namespaces) == 0 {
		p.add(at+".namespaces", "is empty, so the container would have no mount namespace")
	}
	for _, n := range l.Namespaces {
		p.oneOf(at+".namespaces", n, "mount", "ipc", "uts")
	}
	p.keys(at+".sysctls", l.Sysctls)
	for name, list := range map[string]Paths{".masked": l.Masked, ".readonly": l.Readonly} {
		p.paths(at+name, append(slices.Clone(list.Required), list.Optional...))
	}
	var nodes []string
	for i, d := range l.Devices {
		nodes = append(nodes, d.Path)
		p.oneOf(at+".devices["+strconv.Itoa(i)+"].type", d.Type, "c", "b", "u", "p")
	}
	p.paths(at+".devices", nodes)
	if len(l.Seccomp) == 0 {
		p.add(at+".seccomp", "is empty; %q stands for no filter", NoSeccomp)
	}
	for _, s := range l.Seccomp {
		if d, ok := strings.CutPrefix(s, "sha256:"); s != NoSeccomp && (!ok || !isHash(d)) {
			p.add(at+".seccomp", "%s is neither %q nor a digest of the form sha256:…", clip(s), NoSeccomp)
		}
	}
}

func (p *problems) mount(at string, m *Mount, volumes map[string]bool) {
	p.paths(at+".destination", []string{m.Destination})
	members := 0
	for _, set := range []bool{m.Source.Is != nil, m.Source.Shm, m.Source.Copy != nil, m.Source.Volume != nil} {
		if set {
			members++
		}
	}
	if members != 1 {
		p.add(at+".source", "has %d members, one of is, shm, copy and volume has to be there", members)
	}
	if m.Source.Copy != nil {
		p.content(at+".source.copy", m.Source.Copy)
	}
	if u := m.Source.Volume; u != nil {
		if !volumes[u.Name] {
			p.add(at+".source.volume.name", "%s is no volume of the pod", clip(u.Name))
		}
		if u.SubPath != "" && !isBelow(u.SubPath) {
			p.add(at+".source.volume.subPath", "%s is no path below the volume", clip(u.SubPath))
		}
	}
}

func (p *problems) volume(at string, v *Volume) {
	p.oneOf(at+".kind", v.Kind, VolumeCopy, VolumeMemory, VolumeDisk, VolumeImage, VolumeHost)
	made := v.Kind == VolumeMemory || v.Kind == VolumeDisk
	for _, m := range []struct {
		name string
		set  bool
		of   bool
		must bool
	}{
		{"mode", v.Mode != "", made, made},
		{"gid", v.GID != 0, made || v.Kind == VolumeHost, false},
		{"layers", len(v.Layers) > 0, v.Kind == VolumeImage, v.Kind == VolumeImage},
		{"fsType", v.FSType != "", v.Kind == VolumeHost, v.Kind == VolumeHost},
		{"options", len(v.Options) > 0, v.Kind == VolumeHost, false},
		{"content", v.Content != nil, v.Kind == VolumeCopy, v.Kind == VolumeCopy},
	} {
		switch {
		case m.set && !m.of:
			p.add(at+"."+m.name, "a volume of kind %s has none", clip(v.Kind))
		case m.must && !m.set:
			p.add(at+"."+m.name, "is missing, a volume of kind %s has one", clip(v.Kind))
		}
	}
	if n, err := strconv.ParseUint(v.Mode, 8, 12); made && (err != nil || strconv.FormatUint(n, 8) != v.Mode) {
		p.add(at+".mode", "%s is no mode in octal digits", clip(v.Mode))
	}
	if len(v.Layers) > 0 {
		p.hashes(at+".layers", v.Layers)
	}
	if v.Content != nil {
		p.content(at+".content", v.Content)
	}
}

func (p *problems) content(at string, c *Content) {
	p.oneOf(at+".rule", c.Rule, ContentDigest, ContentSigned, ContentUnpinned)
	if len(c.Files) > 0 && c.Rule != ContentDigest {
		p.add(at+".files", "are for the rule %q", ContentDigest)
	}
	if (len(c.Keys) > 0) != (c.Rule == ContentSigned) {
		p.add(at+".keys", "belong to the rule %q and to no other", ContentSigned)
	}
	if c.Counter > 0 && c.Rule != ContentSigned {
		p.add(at+".counter", "belongs to the rule %q", ContentSigned)
	}
	var names []string
	for i, f := range c.Files {
		names = append(names, f.Path)
		if f.Path != "." && !isBelow(f.Path) || !isHash(f.SHA256) {
			p.add(at+".files["+strconv.Itoa(i)+"]", "%s with %s is not a path below and 64 lower-case hexadecimal digits",
				clip(f.Path), clip(f.SHA256))
		}
	}
	p.once(at+".files", names)
	if slices.Contains(names, ".") && len(names) > 1 {
		p.add(at+".files", `has "." for a single file, and others`)
	}
	for _, k := range c.Keys {
		if err := checkKey(k); err != nil {
			p.add(at+".keys", "%s: %v", clip(k), err)
		}
	}
}

// Beginnings of public keys in PKIX form (RFC 5280, 4.1; RFC 5480; RFC 8410), each with the length of the whole. A
// parser for certificates would cost the agent memory.
var keyForms = []struct {
	head []byte
	size int
}{
	{[]byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01" + // ecPublicKey
		"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04"), 91}, // P-256, a point that is not compressed
	{[]byte("\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"), 44},
}

func checkKey(text string) error {
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return errors.New("it is not base64")
	}
	for _, f := range keyForms {
		if len(der) == f.size && bytes.HasPrefix(der, f.head) {
			return nil
		}
	}
	return errors.New("it is no P-256 or Ed25519 key in PKIX form")
}

func (p *problems) value(at string, v Value) {
	members := 0
	for _, set := range []bool{v.Is != nil, len(v.OneOf) > 0, v.Type != "", v.Field != ""} {
		if set {
			members++
		}
	}
	if members != 1 {
		p.add(at, "has %d members, one of is, oneOf, type and field has to be there", members)
	}
	if v.Type != "" && syntax(v.Type) == nil {
		p.add(at+".type", "%s is unknown", clip(v.Type))
	}
	if v.Field != "" && fieldTypes[v.Field] == "" {
		p.add(at+".field", "%s is unknown", clip(v.Field))
	}
	p.once(at+".oneOf", v.OneOf)
}

func (p *problems) oneOf(at, value string, known ...string) {
	if !slices.Contains(known, value) {
		p.add(at, "is %s; known are %s", clip(value), strings.Join(known, ", "))
	}
}

func (p *problems) keys(at string, m map[string]string) {
	for k := range m {
		if k == "" || strings.ContainsAny(k, " \t\n=\x00") {
			p.add(at, "%s is no name", clip(k))
		}
	}
}

func (p *problems) hashes(at string, list []string) {
	if len(list) == 0 {
		p.add(at, "is empty")
	}
	for _, h := range list {
		if !isHash(h) {
			p.add(at, "%s has not 64 lower-case hexadecimal digits", clip(h))
		}
	}
}

func (p *problems) paths(at string, list []string) {
	for _, f := range list {
		if !path.IsAbs(f) || strings.ContainsRune(f, 0) || !utf8.ValidString(f) {
			p.add(at, "%s is no absolute path", clip(f))
		}
	}
	p.once(at, list)
}

func (p *problems) once(at string, list []string) {
	sorted := slices.Sorted(slices.Values(list))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			p.add(at, "%s comes a second time", clip(sorted[i]))
		}
	}
}

func isHash(s string) bool {
	return len(s) == 64 && isHex(s)
}

// isHex says whether s has nothing but lower-case hexadecimal digits.
func isHex(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}

// isBelow says whether a relative path stays below where it starts.
func isBelow(s string) bool {
	return s != "." && s != ".." && !path.IsAbs(s) && path.Clean(s) == s && !strings.HasPrefix(s, "../") &&
		!strings.ContainsRune(s, 0)
}
