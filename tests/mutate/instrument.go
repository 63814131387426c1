// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
)

// probe is the function that instrumented code calls. It says whether a mutant is the one of this run.
const probe = "mutant__"

// mutant is one change of the code.
type mutant struct {
	id   int
	file string
	line int
	in   string // the function
	what string // what the change does
	code string // of the place, shortened
}

// key names a mutant in the list of reasons. It has no line, so that it survives changes elsewhere.
func (m mutant) key() string { return m.file + " " + m.in + ": " + m.what + " `" + m.code + "`" }

// edit inserts a text. Where several are at one offset, closing ones come first, inner before outer; then opening ones,
// outer before inner.
type edit struct {
	at    int
	close bool
	seq   int
	text  string
}

// rewriter puts all mutants of a file into it, each behind a call of probe.
type rewriter struct {
	set   *token.FileSet
	name  string
	src   []byte
	next  int // id
	edits []edit
	found []mutant
	fn    string
}

// instrument returns the source with all mutants in it. The first one gets the id after last.
func instrument(name string, src []byte, last int) ([]byte, []mutant, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", name, err)
	}
	r := &rewriter{set: set, name: name, src: src, next: last + 1}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		r.fn = f.Name.Name
		if f.Recv != nil {
			r.fn = strings.TrimPrefix(r.text(f.Recv.List[0].Type), "*") + "." + r.fn
		}
		r.function(f.Type, f.Body)
	}
	return r.output(), r.found, nil
}

func (r *rewriter) output() []byte {
	slices.SortStableFunc(r.edits, func(a, b edit) int {
		switch {
		case a.at != b.at:
			return a.at - b.at
		case a.close != b.close && a.close:
			return -1
		case a.close != b.close:
			return 1
		case a.close:
			return b.seq - a.seq
		}
		return a.seq - b.seq
	})
	var out bytes.Buffer
	at := 0
	for _, e := range r.edits {
		out.Write(r.src[at:e.at])
		out.WriteString(e.text)
		at = e.at
	}
	out.Write(r.src[at:])
	return out.Bytes()
}

func (r *rewriter) offset(p token.Pos) int { return r.set.Position(p).Offset }

func (r *rewriter) text(n ast.Node) string { return string(r.src[r.offset(n.Pos()):r.offset(n.End())]) }

// wrap puts texts around a node.
func (r *rewriter) wrap(n ast.Node, before, after string) {
	seq := len(r.edits)
	r.edits = append(r.edits,
		edit{at: r.offset(n.Pos()), seq: seq, text: before}, edit{at: r.offset(n.End()), close: true, seq: seq, text: after})
}

// new notes a mutant and returns the call that says whether it is the one of this run.
func (r *rewriter) new(n ast.Node, what string) string {
	const most = 60
	code := strings.Join(strings.Fields(r.text(n)), " ")
	if len(code) > most {
		code = code[:most] + "…"
	}
	id := r.next
	r.next++
	r.found = append(r.found, mutant{
		id: id, file: r.name, line: r.set.Position(n.Pos()).Line, in: r.fn, what: what, code: strings.ToValidUTF8(code, ""),
	})
	return fmt.Sprintf("%s(%d)", probe, id)
}

// function puts the mutants into a function, and into the literals in it.
func (r *rewriter) function(t *ast.FuncType, body *ast.BlockStmt) {
	truth := t.Results != nil && len(t.Results.List) == 1 && len(t.Results.List[0].Names) == 0 &&
		r.text(t.Results.List[0].Type) == "bool"
	loops := map[ast.Node]bool{} // conditions and steps of loops
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			r.function(n.Type, n.Body)
			return false
		case *ast.ForStmt:
			for _, part := range []ast.Stmt{n.Init, n.Post} {
				loops[part] = true
			}
			if n.Cond != nil {
				ast.Inspect(n.Cond, func(c ast.Node) bool { loops[c] = true; return true })
			}
		case *ast.ReturnStmt:
			if truth && len(n.Results) == 1 {
				r.verdict(n.Results[0])
			}
		case *ast.IfStmt:
			loops[n.Init] = true // no statement of its own
			r.condition(n.Cond)
		case *ast.SwitchStmt:
			loops[n.Init] = true
			r.cases(n)
		case *ast.RangeStmt:
			r.entries(n)
		case ast.Stmt:
			if !loops[n] {
				r.statement(n)
			}
		case *ast.BinaryExpr:
			r.binary(n, loops[n])
		}
		return true
	})
}

// verdict negates what a function returns. Comparisons are negated where they stand.
func (r *rewriter) verdict(x ast.Expr) {
	if b, ok := x.(*ast.BinaryExpr); ok && comparison(b.Op) {
		return
	}
	if id, ok := x.(*ast.Ident); ok && (id.Name == "true" || id.Name == "false") {
		return
	}
	r.wrap(x, "((", ") != "+r.new(x, "negates the result")+")")
}

// condition makes a condition false: what depends on it does not happen.
func (r *rewriter) condition(x ast.Expr) {
	r.wrap(x, "(!"+r.new(x, "never takes the branch")+" && (", "))")
}

func (r *rewriter) cases(s *ast.SwitchStmt) {
	if s.Tag != nil {
		return
	}
	for _, c := range s.Body.List {
		if c, ok := c.(*ast.CaseClause); ok {
			for _, x := range c.List {
				r.condition(x)
			}
		}
	}
}

// entries leaves out entries of a list that stands in a loop over it: each is mostly one comparison.
func (r *rewriter) entries(s *ast.RangeStmt) {
	list, ok := s.X.(*ast.CompositeLit)
	if key, blank := s.Key.(*ast.Ident); !ok || !blank || key.Name != "_" {
		return
	}
	var skip strings.Builder
	for i, x := range list.Elts {
		fmt.Fprintf(&skip, " if entry__ == %d && %s { continue };", i, r.new(x, "leaves out the entry"))
	}
	seq := len(r.edits)
	key := r.offset(s.Key.Pos())
	r.edits = append(r.edits, edit{at: key, seq: seq, text: "entry__, "},
		edit{at: r.offset(s.Body.Lbrace) + 1, seq: seq, text: skip.String()})
	// "_, " of the source goes: it is blanked, so that offsets stay.
	for i := key; i < r.offset(s.Value.Pos()); i++ {
		r.src[i] = ' '
	}
}

// statement leaves out a call or an assignment.
func (r *rewriter) statement(s ast.Stmt) {
	switch s := s.(type) {
	case *ast.ExprStmt:
		call, ok := s.X.(*ast.CallExpr)
		if !ok {
			return
		}
		if f, ok := call.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "Lock" || f.Sel.Name == "Unlock") {
			return
		}
	case *ast.AssignStmt:
		if s.Tok != token.ASSIGN {
			return
		}
	default:
		return
	}
	r.wrap(s, "if !"+r.new(s, "leaves out the statement")+" { ", " }")
}

func comparison(op token.Token) bool {
	switch op {
	case token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ:
		return true
	}
	return false
}

// binary negates comparisons, moves their limits by one, and drops operands of && and ||.
func (r *rewriter) binary(b *ast.BinaryExpr, loop bool) {
	switch {
	case comparison(b.Op) && !loop:
		when := r.new(b, "negates")
		if b.Op != token.EQL && b.Op != token.NEQ {
			x, y := r.text(b.X), r.text(b.Y)
			when = "(" + when + " || " + r.new(b, "decides otherwise for equals") + " && (" + x + ") == (" + y + "))"
		}
		r.wrap(b, "((", ") != "+when+")")
	case b.Op == token.LAND || b.Op == token.LOR:
		for _, x := range []ast.Expr{b.X, b.Y} {
			if in, ok := x.(*ast.BinaryExpr); ok && in.Op == b.Op {
				continue // its own operands are
			}
			drop := r.new(x, "drops the operand") + " || ("
			if b.Op == token.LOR {
				drop = "!" + strings.TrimSuffix(drop, "|| (") + "&& ("
			}
			r.wrap(x, "("+drop, "))")
		}
	}
}
