// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

const (
	maxModule  = 32 << 20
	maxModinfo = 64 << 10
)

// module is a kernel module of the package.
type module struct {
	name    string // with underscores
	path    string // in the initramfs, without a leading slash
	data    []byte
	depends []string
	softPre []string
	aliases []string // under which the kernel asks for it
	section section
}

// moduleName turns a file name into the name the kernel uses.
func moduleName(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

// moduleSet finds modules of one kernel package by name.
type moduleSet struct {
	files   map[string]tarFile // by module name
	builtin map[string]bool    // by module name
}

// closure returns the wanted modules and all they depend on, each behind its dependencies.
func (s moduleSet) closure() ([]module, error) {
	c := closer{set: s, seen: map[string]bool{}}
	for _, w := range wantedModules {
		for _, name := range w.names {
			if err := c.visit(name, w.section, nil); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range demandModules.names {
		if _, ok := s.files[name]; !ok {
			continue
		}
		if err := c.visit(name, demandModules.section, nil); err != nil {
			return nil, err
		}
	}
	return c.out, nil
}

// closer gathers modules in load order.
type closer struct {
	set  moduleSet
	seen map[string]bool
	out  []module
}

func (c *closer) visit(name string, sec section, trail []string) error {
	if slices.Contains(trail, name) {
		return fmt.Errorf("kernel module %s depends on itself through %s", name, strings.Join(trail, ", "))
	}
	if c.seen[name] || c.set.builtin[name] {
		return nil
	}
	m, err := c.set.load(name, sec)
	if err != nil {
		return err
	}
	trail = append(slices.Clone(trail), name)
	deps := m.depends
	for _, d := range m.softPre {
		// Others are aliases such as "crc32c": the kernel's own request_module finds them.
		if _, ok := c.set.files[d]; ok && !slices.Contains(deps, d) {
			deps = append(deps, d)
		}
	}
	m.depends = nil
	for _, d := range deps {
		if err := c.visit(d, sec, trail); err != nil {
			return err
		}
		if !c.set.builtin[d] {
			m.depends = append(m.depends, d)
		}
	}
	c.seen[name] = true
	c.out = append(c.out, m)
	return nil
}

func (s moduleSet) load(name string, sec section) (module, error) {
	f, ok := s.files[name]
	if !ok {
		return module{}, fmt.Errorf("the kernel package has no module %s, neither as a file nor built in", name)
	}
	m := module{name: name, data: f.data, section: sec}
	var found bool
	if m.path, found = strings.CutSuffix(f.path, ".xz"); found {
		r, err := xz.NewReader(bytes.NewReader(f.data))
		if err != nil {
			return module{}, fmt.Errorf("inflate kernel module %s: %w", f.path, err)
		}
		if m.data, err = io.ReadAll(io.LimitReader(r, maxModule+1)); err != nil {
			return module{}, fmt.Errorf("inflate kernel module %s: %w", f.path, err)
		}
		if len(m.data) > maxModule {
			return module{}, fmt.Errorf("inflate kernel module %s: more than %d bytes", f.path, maxModule)
		}
	}
	info, err := modinfo(m.data)
	if err != nil {
		return module{}, fmt.Errorf("kernel module %s: %w", f.path, err)
	}
	m.depends, m.softPre, m.aliases = info.depends, info.softPre, info.aliases
	if m.data = stripSignature(m.data); m.packed() {
		m.path, m.data = f.path, f.data
	}
	return m, nil
}

// moduleSigMagic ends a signed module; before it stand the signature and its 12-byte description, the
// last four of which are the signature's length (struct module_signature in
// include/linux/module_signature.h).
const (
	moduleSigMagic = "~Module signature appended~\n"
	moduleSigInfo  = 12
)

// stripSignature removes a module's signature. To check it takes 10 to 20 ms a module under emulation, and
// adds nothing: the whole initramfs is measured where that counts, and the stock kernel does not
// insist on signatures.
func stripSignature(ko []byte) []byte {
	body, signed := bytes.CutSuffix(ko, []byte(moduleSigMagic))
	if !signed || len(body) < moduleSigInfo {
		return ko
	}
	n := int64(binary.BigEndian.Uint32(body[len(body)-4:]))
	if n > int64(len(body)-moduleSigInfo) {
		return ko
	}
	return body[:int64(len(body)-moduleSigInfo)-n]
}

type moduleInfo struct {
	depends, softPre, aliases []string
}

// modinfo reads the dependencies of a module from its .modinfo section. Debian's package has no
// modules.dep, which depmod makes at installation out of the same words.
func modinfo(ko []byte) (moduleInfo, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return moduleInfo{}, err
	}
	s := f.Section(".modinfo")
	if s == nil || s.Size > maxModinfo {
		return moduleInfo{}, fmt.Errorf("no usable .modinfo section")
	}
	b, err := s.Data()
	if err != nil {
		return moduleInfo{}, fmt.Errorf(".modinfo: %w", err)
	}
	return parseModinfo(b), nil
}

func parseModinfo(b []byte) moduleInfo {
	var info moduleInfo
	for field := range strings.SplitSeq(string(b), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					info.depends = append(info.depends, moduleName(d))
				}
			}
		case "alias":
			info.aliases = append(info.aliases, value)
		case "softdep":
			pre := false
			for word := range strings.FieldsSeq(value) {
				if strings.HasSuffix(word, ":") {
					pre = word == "pre:"
				} else if pre {
					info.softPre = append(info.softPre, moduleName(word))
				}
			}
		}
	}
	return info
}

// moduleList is the content of api/contract's ModulesFile: sections in load order; a line has a name, a path and
// the modules that have to be there first.
func moduleList(mods []module) []byte {
	var b bytes.Buffer
	for _, sec := range sections {
		fmt.Fprintf(&b, "# %s\n", sec)
		for _, m := range mods {
			if m.section == sec {
				fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("%s /%s %s", m.name, m.path, strings.Join(m.depends, ",")), " "))
			}
		}
	}
	return b.Bytes()
}

// aliasList is the content of api/contract's AliasesFile: the names, or patterns of names, under which the kernel asks
// for modules that are loaded on demand, each with the module's name.
func aliasList(mods []module) []byte {
	var lines []string
	for _, m := range mods {
		for _, a := range m.aliases {
			if m.section == sectionDemand && a != "" && !strings.ContainsAny(a, " \t\n") {
				lines = append(lines, a+" "+m.name+"\n")
			}
		}
	}
	slices.Sort(lines)
	return []byte(strings.Join(slices.Compact(lines), ""))
}
