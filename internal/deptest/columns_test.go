// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"errors"
	"fmt"
	"go/ast"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// unbreakable is the length from which a string may pass the last column: hashes and lines of other programs' files are
// looked for as they are.
const unbreakable = 90

// wideLines are the lines of a Go file beyond the last column. Raw strings are free, since a break would change them.
// So is the note for a linter, which has to stand on the line that it is about.
func wideLines(src []byte) []int {
	set := token.NewFileSet()
	f := set.AddFile("", -1, len(src))
	var s scanner.Scanner
	s.Init(f, src, nil, scanner.ScanComments)
	free := map[int]bool{}
	note := map[int]int{} // width of the note for a linter, by line
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			break
		}
		line := f.Line(pos)
		switch {
		case tok == token.STRING && (lit[0] == '`' || len(lit) >= unbreakable && !strings.Contains(lit[:unbreakable], " ")):
			for i := range 1 + strings.Count(lit, "\n") {
				free[line+i] = true
			}
		case tok == token.COMMENT && strings.HasPrefix(lit, "//nolint:"):
			note[line] = utf8.RuneCountInString(lit) + 1
		}
	}
	var wide []int
	for i, l := range strings.Split(string(src), "\n") {
		if utf8.RuneCountInString(l)-note[i+1] > maxColumns && !free[i+1] && !strings.HasPrefix(l, "//go:") {
			wide = append(wide, i+1)
		}
	}
	return wide
}

func TestNoLineIsWiderThanAWindow(t *testing.T) {
	root := strings.TrimSpace(output(t, "git", "rev-parse", "--show-toplevel"))
	for _, f := range strings.Fields(output(t, "git", "-C", root, "ls-files", "*.go")) {
		src, err := os.ReadFile(filepath.Join(root, f))
		if errors.Is(err, fs.ErrNotExist) || ast.IsGenerated(header(src)) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range wideLines(src) {
			t.Errorf("%s:%d: more than %d columns", f, l, maxColumns)
		}
	}
}

func TestWideLinesAreFound(t *testing.T) {
	long := strings.Repeat("x", maxColumns)
	src := "package p\n\n// " + long + "\nvar a = `" + long + "\n" + long + "`\n" +
		"var b = f() //nolint:gosec // " + long + "\nvar c = \"" + long + "\"\nvar d = \"" +
		strings.Repeat("word ", 30) + "\"\n// é" + strings.Repeat("é", maxColumns-4) + "\n"
	if got, want := wideLines([]byte(src)), []int{3, 8}; !slices.Equal(got, want) {
		t.Errorf("wide lines are %s, not %s", fmt.Sprint(got), fmt.Sprint(want))
	}
}
