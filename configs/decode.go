// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/containerd/errdefs"
)

// maxFile bounds a configuration text; a real one has a few KiB.
const maxFile = 1 << 20

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	File   string // name of the file, or what stands for it
	Line   int    // 0: no line
	Key    string // "section.key", "section", or "" for the text as a whole
	What   string // what is wrong
	Expect string // what was expected, may be empty
}

// Error is "file:line: section.key: problem; expected …".
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.What)
	if p.Expect != "" {
		b.WriteString("; expected " + p.Expect)
	}
	return b.String()
}

// Problems is every problem of a configuration, in the order of files and lines.
type Problems []Problem

// Error lists the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Is makes every Problems an errdefs.ErrInvalidArgument.
func (ps Problems) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

// Decode reads one TOML text on top of the defaults and validates the result. name stands for the
// text in errors: a path, or for example "ConfigBody". The error is of type Problems.
func Decode(name string, r io.Reader) (Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", name, err)
	}
	return merge([]source{{name, text}})
}

// source is a text and its name.
type source struct {
	name string
	text []byte
}

// origin is where a key was set last.
type origin struct {
	file string
	line int
}

// decoder merges texts and gathers problems.
type decoder struct {
	cfg      Config
	set      map[string]origin
	problems Problems
}

// merge applies the texts in order to the defaults and validates what comes out.
func merge(sources []source) (Config, error) {
	d := &decoder{cfg: Default(), set: map[string]origin{}}
	for _, s := range sources {
		d.text(s)
		d.cfg.Files = append(d.cfg.Files, s.name)
	}
	d.driverDefaults()
	d.validate()
	if len(d.problems) > 0 {
		d.sort()
		return Config{}, d.problems
	}
	return d.cfg, nil
}

// sort puts the problems in the order of the files and of their lines.
func (d *decoder) sort() {
	// slices.SortStableFunc costs 6 kB of the shim for this type.
	sort.SliceStable(d.problems, func(i, j int) bool {
		a, b := d.problems[i], d.problems[j]
		rank := slices.Index(d.cfg.Files, a.File) - slices.Index(d.cfg.Files, b.File)
		return cmp.Or(rank, a.Line-b.Line, strings.Compare(a.Key, b.Key)) < 0
	})
}

func (d *decoder) text(s source) {
	if len(s.text) > maxFile {
		d.add(Problem{File: s.name, What: fmt.Sprintf("is longer than %d bytes", maxFile)})
		return
	}
	if structure(s.text) > maxStructure {
		d.add(Problem{
			File: s.name, What: fmt.Sprintf("has more than %d dots and brackets", maxStructure),
			Expect: "sections with keys",
		})
		return
	}
	var sections map[string]toml.Primitive
	md, err := toml.NewDecoder(bytes.NewReader(s.text)).Decode(&sections)
	if err != nil {
		d.add(syntaxProblem(s.name, err))
		return
	}
	for name, prim := range sections {
		pos := lineOf(&md, prim)
		var keys map[string]toml.Primitive
		if !knownSection(name) {
			what, expect := "unknown section", "one of "+strings.Join(sectionNames(), ", ")
			if !isTable(&md, prim) {
				what = "unknown key outside of a section"
			}
			d.add(Problem{s.name, pos, name, what, expect})
			continue
		}
		if !isTable(&md, prim) || md.PrimitiveDecode(prim, &keys) != nil {
			d.add(Problem{s.name, pos, name, "is not a section", "a table [" + name + "]"})
			continue
		}
		for key, value := range keys {
			d.key(&md, s.name, name+"."+key, value)
		}
	}
}

// maxStructure bounds the characters that nest keys and values. The TOML reader's work grows with the square of how
// deeply they nest: a line of 20 KB can take seconds and gigabytes. A real file has some two hundred.
const maxStructure = 1000

// structure counts the characters that can nest something, in strings too, but not in whole lines of comment.
func structure(text []byte) (n int) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && line[0] == '#' {
			continue
		}
		for _, c := range line {
			if c == '.' || c == '[' || c == '{' {
				n++
			}
		}
	}
	return n
}

// key stores one value; every problem of syntax and type is noted here, those of its range in
// validate, when all files have had their say.
func (d *decoder) key(md *toml.MetaData, file, key string, prim toml.Primitive) {
	at := lineOf(md, prim)
	f, ok := lookup(key)
	if !ok {
		section, _, _ := strings.Cut(key, ".")
		d.add(Problem{file, at, key, "unknown key", "one of " + strings.Join(sectionKeys(section), ", ")})
		return
	}
	var v any
	if err := md.PrimitiveDecode(prim, &v); err != nil {
		d.add(Problem{file, at, key, err.Error(), f.rule.expect})
		return
	}
	if what := assign(f.ptr(&d.cfg), v); what != "" {
		d.add(Problem{file, at, key, what, f.rule.expect})
		return
	}
	d.set[key] = origin{file, at}
}

// assign stores a TOML value, without any conversion between types. It returns "" or the problem.
func assign(dst, v any) string {
	switch p := dst.(type) {
	case *string:
		if s, ok := v.(string); ok {
			*p = s
			return ""
		}
	case *bool:
		if b, ok := v.(bool); ok {
			*p = b
			return ""
		}
	case *int:
		if n, ok := v.(int64); ok {
			if n < math.MinInt32 || n > math.MaxInt32 {
				return fmt.Sprintf("%d is out of range", n)
			}
			*p = int(n)
			return ""
		}
	case *uint64:
		if n, ok := v.(int64); ok {
			if n < 0 {
				return fmt.Sprintf("%d is negative", n)
			}
			*p = uint64(n)
			return ""
		}
	case *Duration:
		return assignDuration(p, v)
	case *[]string:
		return assignList(p, v)
	}
	return "is " + typeName(v)
}

func assignDuration(dst *Duration, v any) string {
	s, ok := v.(string)
	if !ok {
		return "is " + typeName(v)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Sprintf("%q is not a duration", s)
	}
	*dst = d
	return ""
}

func assignList(dst *[]string, v any) string {
	list, ok := v.([]any)
	if !ok {
		return "is " + typeName(v)
	}
	out := make([]string, len(list))
	for i, e := range list {
		s, ok := e.(string)
		if !ok {
			return fmt.Sprintf("element %d is %s, not a string", i+1, typeName(e))
		}
		out[i] = s
	}
	*dst = out
	return ""
}

func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case time.Time:
		return "a date"
	case []any, []map[string]any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return fmt.Sprintf("a %T", v)
}

func (d *decoder) add(p Problem) { d.problems = append(d.problems, p) }

// validate checks every value, then what values mean together. A key that did not decode keeps
// its default, so nothing is reported twice.
func (d *decoder) validate() {
	for _, f := range schema {
		if what := f.problem(&d.cfg); what != "" {
			d.blame(f.key, what, f.rule.expect)
		}
	}
	h := d.cfg.Hypervisor
	if h.MaxVCPUs > 0 && h.DefaultVCPUs > h.MaxVCPUs {
		d.blame("hypervisor.default_vcpus", fmt.Sprintf("%d is above hypervisor.max_vcpus, which is %d", h.DefaultVCPUs,
			h.MaxVCPUs), "")
	}
	if h.MaxMemoryMiB > 0 && h.DefaultMemoryMiB > h.MaxMemoryMiB {
		d.blame("hypervisor.default_memory_mib", fmt.Sprintf("%d is above hypervisor.max_memory_mib, which is %d",
			h.DefaultMemoryMiB, h.MaxMemoryMiB), "")
	}
	d.driver(h)
	d.platform(h)
	d.liveFiles()
	d.warm()
	if d.cfg.Runtime.Rehearse != "" && h.Platform != "none" {
		d.blame("runtime.rehearse", fmt.Sprintf("is for platform \"none\": on %q the VM's own launch digest is published",
			h.Platform), "\"\"")
	}
}

// blame files a problem under the place where the key was set.
func (d *decoder) blame(key, what, expect string) {
	o, ok := d.set[key]
	if !ok {
		o.file = "defaults"
		if n := len(d.cfg.Files); n > 0 {
			o.file = d.cfg.Files[n-1]
			what += " (by default)"
		}
	}
	d.add(Problem{o.file, o.line, key, what, expect})
}

func syntaxProblem(file string, err error) Problem {
	var pe toml.ParseError
	if errors.As(err, &pe) {
		return Problem{File: file, Line: pe.Position.Line, What: "not TOML: " + pe.Message}
	}
	return Problem{File: file, What: "not TOML: " + err.Error()}
}

// isTable looks at the value itself: the library decodes anything but a table into a nil map without a word.
func isTable(md *toml.MetaData, prim toml.Primitive) bool {
	var v any
	err := md.PrimitiveDecode(prim, &v)
	_, ok := v.(map[string]any)
	return err == nil && ok
}

// probe is decoded into only to learn a key's line: its error carries the position.
type probe struct{}

var errProbe = errors.New("probe")

// UnmarshalTOML always fails.
func (*probe) UnmarshalTOML(any) error { return errProbe }

// lineOf is the line of a key, 0 when unknown.
func lineOf(md *toml.MetaData, prim toml.Primitive) int {
	var pe toml.ParseError
	var p probe
	if err := md.PrimitiveDecode(prim, &p); errors.As(err, &pe) {
		return pe.Position.Line
	}
	return 0
}

func sectionNames() []string {
	var out []string
	for _, f := range schema {
		name, _, _ := strings.Cut(f.key, ".")
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func knownSection(name string) bool { return slices.Contains(sectionNames(), name) }

func sectionKeys(section string) []string {
	var out []string
	for _, f := range schema {
		if s, k, _ := strings.Cut(f.key, "."); s == section {
			out = append(out, k)
		}
	}
	return out
}
