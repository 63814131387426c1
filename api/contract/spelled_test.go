// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// words are the constants whose value is too common to look for everywhere: a literal spells one again
// only where a name beside it matches the expression, as Dial in Dial(ctx, 1024). An empty expression
// says that the value is not looked for at all.
var words = map[string]string{
	"PortAgent":    portNames,
	"PortStreams":  portNames,
	"PortForward":  portNames,
	"PortResolver": portNames,
	"PortUpper":    portNames,
	"SharedName":   "",
	"SandboxName":  "",
	"ImageName":    "",
	"RootfsName":   "",

	"DriverWatchableBind": driverNames,
	"DriverVirtioFS":      driverNames,
	"StreamWord":          "^Word$",
	"ResolverWord":        "^Word$",
	"UpperWord":           "^Word$",
	"UpperStill":          "",
	"UpperAll":            "",
	"UpperChanges":        "",
	"GreetingOK":          "^answer$",
	"GreetingFull":        "^answer$",
	"TemplateAge":         "(?i)age$|^late$",

	"SectionBoot":   sectionNames,
	"SectionRootfs": sectionNames,
	"SectionLazy":   sectionNames,
	"SectionReport": sectionNames,
	"SectionDemand": sectionNames,

	"DriverBlk":       driverNames,
	"DriverMMIOBlk":   driverNames,
	"DriverSCSI":      driverNames,
	"DriverEphemeral": driverNames,
	"DriverLocal":     driverNames,
	"DriverOverlay":   driverNames,
	"DriverBind":      driverNames,
}

const (
	portNames    = `(?i)ports?$|^dial|^listen$`
	sectionNames = `(?i)^section`
	driverNames  = `(?i)driver$|^Drivers$|^DeviceTypes$`
)

// inTests are constants that tests may spell, each with the reason; so may they drivers, which are what they
// send to the agent, and paths below a root that is not the guest's.
var inTests = map[string]string{
	"KubeletData": "tests make volumes as kubelet does",
	"PartTrust":   "tests write lists of parts",
	"PartRego":    "tests write lists of parts",
	"PartPrefix":  "tests write lists of parts",
}

// exceptions maps each file that may repeat values of the contract to the reason. The reason starts with "bytes" in
// tests that compare a message byte for byte with a value written by hand: a constant would change along with the code.
var exceptions = map[string]string{
	"agent/boot/boot_test.go":             "bytes: a kernel command line",
	"agent/guard/guard_test.go":           "bytes: what a hostile host may name",
	"hypervisor/qemu/boot_test.go":        "its guest is testdata/init, which has ports of its own",
	"virtcontainers/hostvolume/direct.go": "a directory of the host, which CSI drivers know from Kata",
	"configs/configs_test.go":             "bytes: what a pod's author writes, and the errors that name it",
	"plan/launch/shape_test.go":           "bytes: keys are made of their last words",
	"shim/bootstrap/process_test.go":      "bytes: a config.json of containerd's",
	"shim/bundle/bundle_test.go":          "bytes: a config.json of containerd's, and of CRI-O's",
	"shim/sandbox/sandbox_test.go":        "bytes: what containerd's CRI plugin writes for a sandbox",
	"plan/request/spec_test.go":           "bytes: what the agent gets",
	"plan/rootfs/rootfs_test.go":          "bytes: what the agent gets",
}

// value is one constant of the contract.
type value struct {
	name    string
	text    string         // of a string
	num     string         // of a number
	near    *regexp.Regexp // nil: anywhere
	shipped bool           // tests may spell it
}

// values evaluates the package's constants; those that are not looked for are left out.
func values(t *testing.T) []value {
	t.Helper()
	fset := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	pkg, err := new(types.Config).Check("contract", fset, files, nil)
	if err != nil {
		t.Fatalf("the package may not import anything: %v", err)
	}
	var out []value
	for _, name := range pkg.Scope().Names() {
		c, ok := pkg.Scope().Lookup(name).(*types.Const)
		if !ok {
			continue
		}
		v := value{name: name, shipped: inTests[name] != ""}
		near, word := words[name]
		switch {
		case word && near == "":
			continue
		case word:
			v.near, v.shipped = regexp.MustCompile(near), near == driverNames
		}
		if c.Val().Kind() == constant.Int {
			v.num = c.Val().ExactString()
		} else {
			v.text = constant.StringVal(c.Val())
		}
		if !word && !distinctive(v.text) {
			t.Errorf("%s is %q, a common word: say in words beside which names it is looked for", name, c.Val())
		}
		out = append(out, v)
		if rel, ok := strings.CutPrefix(v.text, GuestRoot+"/"); ok && distinctive(rel) {
			out = append(out, value{name: name, text: rel, shipped: true})
		}
	}
	slices.SortStableFunc(out, func(a, b value) int { return len(b.text) - len(a.text) }) // the longest is found first
	return out
}

// distinctive tells whether a value is more than a word.
func distinctive(s string) bool { return strings.ContainsAny(s, "./_-=") }

// spells tells whether a literal's text holds the value as a whole, as "/run/x" is held by "/run/x/y"
// and not by "/run/xy".
func (v value) spells(text string) bool {
	if v.text == "" {
		return false
	}
	for rest := text; ; {
		i := strings.Index(rest, v.text)
		if i < 0 {
			return false
		}
		before, after := rest[:i], rest[i+len(v.text):]
		open := strings.HasSuffix(v.text, ".") || strings.HasSuffix(v.text, "=")
		if !endsInWord(before) && (open || !beginsWithWord(after)) {
			return true
		}
		rest = after
	}
}

func isWord(c byte) bool {
	return c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

func endsInWord(s string) bool     { return s != "" && (isWord(s[len(s)-1]) || s[len(s)-1] == '.') }
func beginsWithWord(s string) bool { return s != "" && isWord(s[0]) }

// second is a literal that spells a value of the contract.
type second struct {
	value
	at      token.Position
	literal string
}

func (s second) String() string {
	return fmt.Sprintf("%s spells contract.%s again: %s", s.at, s.name, s.literal)
}

// find lists the second spellings in one file.
func find(t *testing.T, fset *token.FileSet, path string, list []value) []second {
	t.Helper()
	f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var out []second
	var stack []ast.Node
	ast.Inspect(f, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		if lit, ok := n.(*ast.BasicLit); ok {
			for _, v := range list {
				if v.matches(lit, stack) {
					out = append(out, second{v, fset.Position(lit.Pos()), lit.Value})
					break
				}
			}
		}
		stack = append(stack, n)
		return true
	})
	return out
}

// matches tells whether a literal, whose ancestors are in the stack, spells the value.
func (v value) matches(lit *ast.BasicLit, stack []ast.Node) bool {
	switch {
	case lit.Kind == token.STRING && v.text != "":
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			return false
		}
		if v.near == nil {
			return v.spells(text)
		}
		return text == v.text && slices.ContainsFunc(beside(lit, stack), v.near.MatchString)
	case lit.Kind == token.INT && v.num != "":
		return lit.Value == v.num && slices.ContainsFunc(beside(lit, stack), v.near.MatchString)
	}
	return false
}

// beside lists the names that say what a literal is: of the constant, variable, field, function, type
// or comparison that it stands in, or of the function that returns it.
func beside(lit ast.Node, stack []ast.Node) []string {
	var names []string
	add := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			names = append(names, nameOf(e))
		}
	}
	for i := len(stack) - 1; i >= 0; i-- {
		switch n := stack[i].(type) {
		case *ast.ValueSpec:
			for _, id := range n.Names {
				names = append(names, id.Name)
			}
			return names
		case *ast.AssignStmt:
			add(n.Lhs...)
			return names
		case *ast.KeyValueExpr:
			add(n.Key)
		case *ast.BinaryExpr:
			add(n.X, n.Y)
		case *ast.CompositeLit:
			add(n.Type)
		case *ast.CaseClause:
			if !slices.ContainsFunc(n.List, func(e ast.Expr) bool { return e.Pos() <= lit.Pos() && lit.End() <= e.End() }) {
				return names
			}
		case *ast.SwitchStmt:
			add(n.Tag)
			return names
		case *ast.CallExpr:
			add(n.Fun)
			return names
		case *ast.ReturnStmt:
			for _, n := range stack[:i] {
				if f, ok := n.(*ast.FuncDecl); ok {
					add(f.Name)
				}
			}
			return names
		case ast.Stmt:
			if _, ok := n.(*ast.BlockStmt); !ok {
				return names
			}
		}
	}
	return names
}

// nameOf returns the last name of an expression: Dial for vm.Dial, Driver for s.GetDriver().
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.CallExpr:
		return nameOf(e.Fun)
	case *ast.IndexExpr:
		return nameOf(e.X)
	case *ast.MapType:
		return nameOf(e.Key)
	case *ast.ArrayType:
		return nameOf(e.Elt)
	}
	return ""
}

// root is the repository's directory.
const root = "../.."

// goFiles lists the repository's Go files outside this package, by their paths from root.
func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (rel == "api/contract" || rel == "dist" || rel == "bin" || rel != "." && rel[0] == '.'):
			return fs.SkipDir
		case strings.HasSuffix(rel, ".go") && !strings.HasSuffix(rel, ".pb.go"):
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestNothingOfTheContractIsSpelledTwice(t *testing.T) {
	list, used := values(t), map[string]bool{}
	for _, file := range goFiles(t) {
		test := strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "tests/")
		for _, s := range find(t, token.NewFileSet(), filepath.Join(root, file), list) {
			if test && s.shipped {
				continue
			}
			if exceptions[file] != "" {
				used[file] = true
				continue
			}
			t.Errorf("%v; use the constant, or name the file in exceptions with the reason", s)
		}
	}
	for file := range exceptions {
		if !used[file] {
			t.Errorf("%s spells nothing of the contract: take it out of exceptions", file)
		}
	}
}

// The fixture marks each line that has to be found with a comment: the constant's name.
func TestASecondSpellingIsFound(t *testing.T) {
	const fixture = "testdata/second.go"
	text, err := os.ReadFile(fixture)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for i, line := range strings.Split(string(text), "\n") {
		if _, name, ok := strings.Cut(line, "// want "); ok {
			for n := range strings.SplitSeq(name, ", ") {
				want = append(want, fmt.Sprintf("%d %s", i+1, n))
			}
		}
	}
	for _, s := range find(t, token.NewFileSet(), fixture, values(t)) {
		got = append(got, fmt.Sprintf("%d %s", s.at.Line, s.name))
	}
	if !slices.Equal(want, got) {
		t.Errorf("second spellings in %s:\n got %q\nwant %q", fixture, got, want)
	}
}
