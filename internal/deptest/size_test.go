// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Sizes that a reader can hold in mind. Lines are lines with code: comments and blank lines are free. Tests are not
// counted, but their columns are.
const (
	maxPackageLines = 1500
	maxFuncLines    = 60
	maxFields       = 15
	maxMethods      = 6
	maxColumns      = 120 // a tab counts one
)

// exception is the limit that holds for something large, and the reason.
type exception struct {
	limit int
	why   string
}

// Reasons that several have.
const (
	oneKeyAField  = "one field for each key of a file or flag that users write: the format is what is large"
	imitatesOther = "it imitates another program, one field for each behaviour that a test can switch"
)

// large names what passes a limit. A limit here only falls: what became a fifth smaller takes a smaller number, what
// fits leaves the table.
var large = map[string]exception{
	"agent": {
		1850,
		"handlers of one service; sandbox and container become types of their own",
	},
	"guest": {
		2050,
		"builder of the image; to be cut into packages, files and boot archive",
	},
	"configs.Hypervisor":                    {30, oneKeyAField},
	"configs.Runtime":                       {24, oneKeyAField},
	"guest.Options":                         {19, oneKeyAField},
	"cmd/coco/internal/measure/sev.Options": {18, oneKeyAField},
	"plan/launch.Expected":                  {16, oneKeyAField},
	"tests/vectors.Case":                    {18, oneKeyAField},
	"virtcontainers/state.Pod":              {16, oneKeyAField},
	"image/erofs.node":                      {20, "the fields of an inode on disk and of its place in the tree"},
	"internal/portmux.Conn":                 {20, "two directions of a stream, each with its window, deadline and end"},
	"internal/portmux.link":                 {20, "one link: its queues, limits and counters"},
	"hypervisor/clh/clhtest.Config":         {29, imitatesOther},
	"hypervisor/clh/clhtest.vmm":            {17, imitatesOther},
}

// sizes measures packages, functions, structs and interfaces of Go source, by name.
type sizes struct {
	set  *token.FileSet
	code map[string]map[int]bool // lines with code by file
	of   map[string]measure
}

type measure struct {
	kind  string
	n     int
	limit int
	pos   string
}

func newSizes() *sizes {
	return &sizes{set: token.NewFileSet(), code: map[string]map[int]bool{}, of: map[string]measure{}}
}

// add measures one file of a package.
func (s *sizes) add(pkg, name string, src []byte) error {
	file, err := parser.ParseFile(s.set, name, src, 0)
	if err != nil {
		return err
	}
	s.code[name] = codeLines(src)
	m := s.of[pkg]
	s.of[pkg] = measure{"package", m.n + len(s.code[name]), maxPackageLines, path.Dir(name)}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			s.measure(pkg+"."+funcName(d), "function", s.lines(name, d), maxFuncLines, d)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if ts, ok := spec.(*ast.TypeSpec); ok {
					s.addType(pkg+"."+ts.Name.Name, ts)
				}
			}
		}
	}
	return nil
}

func (s *sizes) addType(name string, ts *ast.TypeSpec) {
	switch t := ts.Type.(type) {
	case *ast.StructType:
		s.measure(name, "struct", members(t.Fields), maxFields, ts)
	case *ast.InterfaceType:
		s.measure(name, "interface", members(t.Methods), maxMethods, ts)
	}
}

func (s *sizes) measure(name, kind string, n, limit int, at ast.Node) {
	s.of[name] = measure{kind, n, limit, s.set.Position(at.Pos()).String()}
}

// lines counts the lines with code of a node.
func (s *sizes) lines(name string, n ast.Node) int {
	count := 0
	for l := s.set.Position(n.Pos()).Line; l <= s.set.Position(n.End()).Line; l++ {
		if s.code[name][l] {
			count++
		}
	}
	return count
}

// members counts fields or methods, an embedded type as one.
func members(l *ast.FieldList) int {
	n := 0
	for _, f := range l.List {
		n += max(1, len(f.Names))
	}
	return n
}

func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	t := d.Recv.List[0].Type
	if p, ok := t.(*ast.StarExpr); ok {
		t = p.X
	}
	if x, ok := t.(*ast.IndexExpr); ok {
		t = x.X
	}
	return fmt.Sprintf("%s.%s", t, d.Name.Name)
}

// codeLines are the lines on which a token stands that is no comment.
func codeLines(src []byte) map[int]bool {
	set := token.NewFileSet()
	f := set.AddFile("", -1, len(src))
	var s scanner.Scanner
	s.Init(f, src, nil, 0)
	out := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return out
		}
		if tok == token.SEMICOLON && lit == "\n" {
			continue // set by the scanner
		}
		for i := range 1 + strings.Count(lit, "\n") {
			out[f.Line(pos)+i] = true
		}
	}
}

// check compares what was measured with the limits, and the table of exceptions with what is there.
func (s *sizes) check(large map[string]exception) []string {
	var out []string
	for name, m := range s.of {
		e, known := large[name]
		switch {
		case known && m.n <= m.limit*4/5:
			out = append(out, fmt.Sprintf("%s %s fits with %d: take it out of the table", m.kind, name, m.n))
		case known && m.n < e.limit*4/5:
			out = append(out, fmt.Sprintf("%s %s has %d by now: lower its limit of %d", m.kind, name, m.n, e.limit))
		case known && m.n > e.limit:
			out = append(out, fmt.Sprintf("%s: %s %s has %d, its own limit is %d", m.pos, m.kind, name, m.n, e.limit))
		case !known && m.n > m.limit:
			out = append(out, fmt.Sprintf("%s: %s %s has %d, the limit is %d: split it", m.pos, m.kind, name, m.n, m.limit))
		}
	}
	for name, l := range large {
		if _, ok := s.of[name]; !ok {
			out = append(out, name+" is in the table and not in the tree")
		}
		if l.why == "" {
			out = append(out, name+" is in the table without a reason")
		}
	}
	slices.Sort(out)
	return out
}

func TestNothingIsLargerThanAReaderCanHold(t *testing.T) {
	root := strings.TrimSpace(output(t, "git", "rev-parse", "--show-toplevel"))
	s := newSizes()
	for _, f := range strings.Fields(output(t, "git", "-C", root, "ls-files", "*.go")) {
		src, err := os.ReadFile(filepath.Join(root, f))
		if errors.Is(err, fs.ErrNotExist) || strings.HasSuffix(f, "_test.go") || ast.IsGenerated(header(src)) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.add(path.Dir(f), f, src); err != nil {
			t.Fatal(err)
		}
	}
	for _, fault := range s.check(large) {
		t.Error(fault)
	}
}

// A limit is held, an exception has a reason and does not outlive what it excuses.
func TestWhatIsTooLargeIsNamed(t *testing.T) {
	var body strings.Builder
	for range maxFuncLines {
		body.WriteString("\t// a comment is free\n\n\tprintln()\n")
	}
	src := "package p\n\nfunc (t *T) Long() {\n" + body.String() + "}\n\ntype T struct {\n\ta, b, c int // three\n}\n\n" +
		"type I interface {\n\tA(); B(); C(); D(); E(); F(); G()\n}\n\nfunc short() {}\n"
	measured := func() *sizes {
		s := newSizes()
		if err := s.add("p", "p/p.go", []byte(src)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, tc := range []struct {
		large map[string]exception
		want  []string
	}{
		{nil, []string{"p.T.Long has 62, the limit is 60", "p.I has 7, the limit is 6"}},
		{map[string]exception{"p.T.Long": {62, "x"}, "p.I": {7, "x"}}, nil},
		{map[string]exception{"p.T.Long": {61, "x"}, "p.I": {7, "x"}}, []string{"p.T.Long has 62, its own limit is 61"}},
		{
			map[string]exception{"p.T.Long": {90, "x"}, "p.I": {7, ""}},
			[]string{"lower its limit of 90", "p.I is in the table without a reason"},
		},
		{
			map[string]exception{"p.T.Long": {62, "x"}, "p.I": {7, "x"}, "p.T": {16, "x"}, "p.Gone": {9, "x"}},
			[]string{"p.T fits with 3", "p.Gone is in the table and not"},
		},
	} {
		got := measured().check(tc.large)
		if len(got) != len(tc.want) {
			t.Errorf("%v: %q, want %q", tc.large, got, tc.want)
		}
		for _, want := range tc.want {
			if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("%v: %q lacks %q", tc.large, got, want)
			}
		}
	}
}

// header parses as much of a file as says whether it is generated.
func header(src []byte) *ast.File {
	f, err := parser.ParseFile(token.NewFileSet(), "", src, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		return &ast.File{}
	}
	return f
}
