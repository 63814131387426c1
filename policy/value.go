// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"github.com/coco-shim/coco/internal/ident"
)

const maxText = 4096 // of a value whose text the policy does not have

// fieldTypes are the syntaxes of the fields.
var fieldTypes = map[string]string{
	FieldHostname: TypeName, FieldPodName: TypeName, FieldPodNamespace: TypeName, FieldPodUID: TypeUUID,
	FieldPodIP: TypeIP, FieldPodIPs: TypeIPs, FieldHostIP: TypeIP, FieldHostIPs: TypeIPs, FieldNodeName: TypeName,
	FieldSandboxID: TypeID,
}

// FieldSyntax returns the Type… constant that a Field… constant's texts have.
func FieldSyntax(field string) string { return fieldTypes[field] }

// HasSyntax says whether a text has the syntax of a Type… constant. No text has that of an unknown one.
func HasSyntax(kind, text string) bool {
	check := syntax(kind)
	return check != nil && check(text)
}

// syntax returns the check of a Type… constant, nil if it is unknown.
func syntax(name string) func(string) bool {
	switch name {
	case TypeAny:
		return isText
	case TypeIP:
		return isIP
	case TypeIPs:
		return isIPs
	case TypePort:
		return isPort
	case TypeNumber:
		return isNumber
	case TypeName:
		return isName
	case TypeID:
		return ident.ID
	case TypeUUID:
		return isUUID
	case TypeURL:
		return isURL
	case TypeSealed:
		return isSealed
	}
	return nil
}

func isText(s string) bool { return len(s) <= maxText && !strings.ContainsFunc(s, unicode.IsControl) }

func isIP(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

func isIPs(s string) bool {
	if len(s) > maxText {
		return false
	}
	for a := range strings.SplitSeq(s, ",") {
		if !isIP(a) {
			return false
		}
	}
	return true
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

func isNumber(s string) bool {
	digits := strings.TrimLeft(s, "+-")
	return digits != "" && len(s) <= 20 && len(s)-len(digits) <= 1 &&
		!strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
}

// isName says whether s is a DNS name in lower case.
func isName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
			return false
		}
	}
	return true
}

// isUUID says whether s is a UID of Kubernetes: a UUID, or the 32 digits of a static pod's hash.
func isUUID(s string) bool {
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		s = strings.ReplaceAll(s, "-", "")
	}
	return len(s) == 32 && isHex(s)
}

func isURL(s string) bool {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme != "tcp" && scheme != "udp" && scheme != "sctp" {
		return false
	}
	a, err := netip.ParseAddrPort(rest)
	return err == nil && a.Port() != 0
}
