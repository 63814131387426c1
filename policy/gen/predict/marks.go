// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package predict

import (
	"fmt"
	"strings"
)

// markRune stands at both ends of a mark. It is of Unicode's private use, so that no text of a manifest has it by
// accident; Check refuses one that has.
const markRune = "\ue000"

// Marks that are no fields of a policy.
const (
	// AnyText stands for a text that is unknown: of an object that was not given, or of a service.
	AnyText = "any"
	// Number stands for a number that depends on the node.
	Number = "number"
)

// Mark is a text that stands for a fact of the pod that only its node knows. Its name is a field of a policy, AnyText
// or Number.
func Mark(name string) string { return markRune + name + markRune }

// Marks splits a text at its marks: names has those of the marks in order. whole: the text is one mark and nothing
// else.
func Marks(s string) (names []string, whole bool) {
	parts := strings.Split(s, markRune)
	for i := 1; i < len(parts); i += 2 {
		names = append(names, parts[i])
	}
	return names, len(parts) == 3 && parts[0] == "" && parts[2] == ""
}

// CheckText refuses a text of a user that has the character of which marks are made.
func CheckText(what string, text []byte) error {
	if strings.Contains(string(text), markRune) {
		return fmt.Errorf("%s has the character U+E000, which is not supported", what)
	}
	return nil
}

// plain refuses a text whose value only the node knows.
func plain(what, s string) error {
	names, _ := Marks(s)
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%s depends on %s, which only the node knows, and a policy pins it: let the program read it from "+
		"its environment", what, strings.Join(names, " and "))
}
