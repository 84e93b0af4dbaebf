// This file answers: do the pages of every list add up, whatever their size, and
// do filters select exactly what they say?
package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// pager asks for one page and gives the keys on it and the next token.
type pager func(size int32, token string) ([]string, string, error)

// pages follows the tokens and gives all keys in their order.
func pages(c *check, what string, list pager, size int32) []string {
	all := []string{}
	for token := ""; ; {
		keys, next, err := list(size, token)
		c.ok(err, what)
		c.that(size <= 0 || len(keys) <= int(size), "%s: a page of %d items, asked for %d", what, len(keys), size)
		c.that(len(keys) > 0 || next == "", "%s: an empty page that is not the last", what)
		c.that(size > 0 || next == "", "%s: a token although no paging was asked for", what)
		all = append(all, keys...)
		if next == "" {
			return all
		}
		token = next
	}
}

func keysOf[T any](items []T, key func(T) string) []string {
	keys := []string{}
	for _, item := range items {
		keys = append(keys, key(item))
	}
	return keys
}

func (s *suite) entryPager(c *check, filter *entryv1.ListEntriesRequest_Filter) pager {
	return func(size int32, token string) ([]string, string, error) {
		response, err := s.admin.entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{Filter: filter, PageSize: size, PageToken: token})
		return keysOf(response.GetEntries(), (*types.Entry).GetId), response.GetNextPageToken(), err
	}
}

func (s *suite) agentPager(c *check, filter *agentv1.ListAgentsRequest_Filter) pager {
	return func(size int32, token string) ([]string, string, error) {
		response, err := s.admin.agents.ListAgents(c.ctx, &agentv1.ListAgentsRequest{Filter: filter, PageSize: size, PageToken: token})
		return keysOf(response.GetAgents(), func(a *types.Agent) string { return idString(a.GetId()) }), response.GetNextPageToken(), err
	}
}

func (s *suite) pagingChecks(ctx context.Context) {
	const many = 7
	lists := map[string]func(*check) pager{
		"entries": func(c *check) pager { return s.entryPager(c, nil) },
		"agents":  func(c *check) pager { return s.agentPager(c, nil) },
		"federated-bundles": func(c *check) pager {
			return func(size int32, token string) ([]string, string, error) {
				response, err := s.admin.bundles.ListFederatedBundles(c.ctx, &bundlev1.ListFederatedBundlesRequest{PageSize: size, PageToken: token})
				return keysOf(response.GetBundles(), (*types.Bundle).GetTrustDomain), response.GetNextPageToken(), err
			}
		},
		"federation-relationships": func(c *check) pager {
			return func(size int32, token string) ([]string, string, error) {
				response, err := s.admin.trustDomains.ListFederationRelationships(c.ctx, &trustdomainv1.ListFederationRelationshipsRequest{PageSize: size, PageToken: token})
				return keysOf(response.GetFederationRelationships(), (*types.FederationRelationship).GetTrustDomain), response.GetNextPageToken(), err
			}
		},
	}
	s.check(ctx, "pages/something-to-list", func(c *check) {
		needs(c, s.node)
		for i := range many {
			name := s.foreignName(fmt.Sprintf("paged-%d", i))
			s.create(c, &types.Entry{ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path(fmt.Sprintf("paged-%d", i))), Selectors: unixSelector(80 + i)})
			created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
				FederationRelationships: []*types.FederationRelationship{{
					TrustDomain: name, BundleEndpointUrl: "https://127.0.0.1:1/bundle",
					BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
					TrustDomainBundle:     &types.Bundle{TrustDomain: name},
				}},
			})
			result, err := only(created.GetResults(), err)
			c.ok(err, "create")
			c.status(result.GetStatus(), codes.OK, "create")
			s.enter(c, nil).conn.Close()
		}
	})
	for name, list := range lists {
		s.check(ctx, "pages/of-"+name+"-add-up", func(c *check) {
			whole := pages(c, "everything at once", list(c), 0)
			c.that(len(whole) >= many, "only %d to list", len(whole))
			sorted := slices.Clone(whole)
			slices.Sort(sorted)
			equal(c, "distinct items", len(slices.Compact(sorted)), len(whole))
			n := int32(len(whole))
			for _, size := range []int32{-1, 1, 2, 3, n - 1, n, n + 1, 1 << 30} {
				got := pages(c, fmt.Sprintf("pages of %d", size), list(c), size)
				c.that(slices.Equal(got, whole), "pages of %d: %q, at once %q", size, got, whole)
			}
		})
		s.check(ctx, "pages/of-"+name+"-refuse-a-token-that-is-none", func(c *check) {
			for _, token := range []string{"?", "no token", "\u00e9", strings.Repeat("=", 100)} {
				_, _, err := list(c)(2, token)
				c.code(err, codes.InvalidArgument, fmt.Sprintf("token %q", token))
			}
		})
	}
	s.check(ctx, "pages/go-on-where-the-last-item-was-deleted", func(c *check) {
		filter := &entryv1.ListEntriesRequest_Filter{ByParentId: protoID(s.path("page-parent"))}
		for i := range 4 {
			s.create(c, &types.Entry{ParentId: filter.ByParentId, SpiffeId: protoID(s.path("page-end")), Selectors: unixSelector(i)})
		}
		list := s.entryPager(c, filter)
		whole := pages(c, "everything at once", list, 0)
		first, token, err := list(2, "")
		c.ok(err, "list")
		_, err = s.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: first[1:]})
		c.ok(err, "delete")
		rest, next, err := list(2, token)
		c.ok(err, "list")
		c.that(slices.Equal(rest, whole[2:]) && next == "", "%q follows, expected %q", rest, whole[2:])
	})
	s.check(ctx, "pages/what-was-listed-goes", func(c *check) {
		for i := range many {
			s.endFederation(c, s.foreignName(fmt.Sprintf("paged-%d", i)))
		}
	})
}

// subsets are all that are not empty.
func subsets(of []string) [][]string {
	var sets [][]string
	for bits := 1; bits < 1<<len(of); bits++ {
		var set []string
		for i, value := range of {
			if bits&(1<<i) != 0 {
				set = append(set, value)
			}
		}
		sets = append(sets, set)
	}
	return sets
}

// relations are the four of SPIRE's filters: does have stand in it to given?
func relations() map[string]struct {
	number int32
	holds  func(have, given []string) bool
} {
	within := func(some, all []string) bool {
		return !slices.ContainsFunc(some, func(one string) bool { return !slices.Contains(all, one) })
	}
	return map[string]struct {
		number int32
		holds  func(have, given []string) bool
	}{
		"exact":    {0, func(have, given []string) bool { return within(have, given) && within(given, have) }},
		"subset":   {1, within},
		"superset": {2, func(have, given []string) bool { return within(given, have) }},
		"any": {3, func(have, given []string) bool {
			return slices.ContainsFunc(have, func(one string) bool { return slices.Contains(given, one) })
		}},
	}
}

// filterChecks make an entry for every subset of four, and ask for every subset.
func (s *suite) filterChecks(ctx context.Context) {
	values := []string{"a", "b", "c", "d"}
	parent := protoID(s.path("filtered-parent"))
	domains := []string{}
	for _, value := range values {
		domains = append(domains, s.foreignName("filter-"+value))
	}
	selectors := func(set []string) []*types.Selector {
		var made []*types.Selector
		for _, value := range set {
			made = append(made, &types.Selector{Type: "filter-" + s.mark, Value: value})
		}
		return made
	}
	named := func(set []string) []string {
		var made []string
		for _, value := range set {
			made = append(made, domains[slices.Index(values, value)])
		}
		return made
	}
	sets := map[string][]string{} // by entry ID
	s.check(ctx, "filters/something-to-select", func(c *check) {
		for _, domain := range domains {
			s.setBundle(c, &types.Bundle{TrustDomain: domain})
		}
		for _, set := range subsets(values) {
			entry := &types.Entry{ParentId: parent, SpiffeId: protoID(s.path("filtered")), Selectors: selectors(set), FederatesWith: named(set)}
			sets[s.create(c, entry)[0].GetId()] = set
		}
	})
	judge := func(c *check, filter *entryv1.ListEntriesRequest_Filter, selected func(have []string) bool) {
		var want []string
		for id, set := range sets {
			if selected(set) {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		for _, size := range []int32{0, 1, 4} {
			got := pages(c, "list", s.entryPager(c, filter), size)
			slices.Sort(got)
			c.that(slices.Equal(got, want), "%v in pages of %d: %d entries, expected %d", filter, size, len(got), len(want))
		}
		count, err := s.admin.entries.CountEntries(c.ctx, &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{
			ByParentId: filter.ByParentId, BySelectors: filter.BySelectors, ByFederatesWith: filter.ByFederatesWith,
		}})
		c.ok(err, "count")
		equal(c, fmt.Sprintf("count with %v", filter), int(count.GetCount()), len(want))
	}
	for name, relation := range relations() {
		s.check(ctx, "filters/selectors-"+name, func(c *check) {
			c.that(len(sets) == 15, "an earlier check that this one builds on failed")
			for _, given := range subsets(values) {
				judge(c, &entryv1.ListEntriesRequest_Filter{
					ByParentId:  parent,
					BySelectors: &types.SelectorMatch{Selectors: selectors(given), Match: types.SelectorMatch_MatchBehavior(relation.number)},
				}, func(have []string) bool { return relation.holds(have, given) })
			}
		})
		s.check(ctx, "filters/federates-with-"+name, func(c *check) {
			c.that(len(sets) == 15, "an earlier check that this one builds on failed")
			for _, given := range subsets(values) {
				judge(c, &entryv1.ListEntriesRequest_Filter{
					ByParentId:      parent,
					ByFederatesWith: &types.FederatesWithMatch{TrustDomains: named(given), Match: types.FederatesWithMatch_MatchBehavior(relation.number)},
				}, func(have []string) bool { return relation.holds(have, given) })
			}
		})
	}
	s.check(ctx, "filters/both-must-hold", func(c *check) {
		c.that(len(sets) == 15, "an earlier check that this one builds on failed")
		judge(c, &entryv1.ListEntriesRequest_Filter{
			ByParentId:      parent,
			BySelectors:     &types.SelectorMatch{Selectors: selectors([]string{"a"}), Match: types.SelectorMatch_MATCH_SUPERSET},
			ByFederatesWith: &types.FederatesWithMatch{TrustDomains: named([]string{"b"}), Match: types.FederatesWithMatch_MATCH_SUPERSET},
		}, func(have []string) bool { return slices.Contains(have, "a") && slices.Contains(have, "b") })
	})
	s.check(ctx, "filters/what-is-malformed-is-refused", func(c *check) {
		for _, filter := range []*entryv1.ListEntriesRequest_Filter{
			{BySelectors: &types.SelectorMatch{}},
			{BySelectors: &types.SelectorMatch{Selectors: selectors([]string{"a"}), Match: 9}},
			{ByFederatesWith: &types.FederatesWithMatch{}},
			{ByFederatesWith: &types.FederatesWithMatch{TrustDomains: []string{"no trust domain"}}},
			{ByFederatesWith: &types.FederatesWithMatch{TrustDomains: domains[:1], Match: 9}},
			{BySpiffeId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}},
		} {
			_, err := s.admin.entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{Filter: filter})
			c.code(err, codes.InvalidArgument, fmt.Sprintf("list with %v", filter))
			_, err = s.admin.entries.CountEntries(c.ctx, &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{
				BySpiffeId: filter.BySpiffeId, BySelectors: filter.BySelectors, ByFederatesWith: filter.ByFederatesWith,
			}})
			c.code(err, codes.InvalidArgument, fmt.Sprintf("count with %v", filter))
		}
	})
}

func (s *suite) agentFilterChecks(ctx context.Context) {
	s.check(ctx, "filters/agents", func(c *check) {
		popNode := s.openPop(c, s.pop)
		popNode.conn.Close()
		pop := popNode.svid.ID.String()
		banned := s.enter(c, nil)
		banned.conn.Close()
		_, err := s.admin.agents.BanAgent(c.ctx, &agentv1.BanAgentRequest{Id: protoID(banned.svid.ID)})
		c.ok(err, "ban")
		whole, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: protoID(popNode.svid.ID)})
		c.ok(err, "get")
		has := whole.GetSelectors()
		c.that(len(has) >= 2, "the x509pop node has %d selectors", len(has))
		more := append(slices.Clone(has), &types.Selector{Type: "other", Value: "selector"})
		match := func(how types.SelectorMatch_MatchBehavior, selectors []*types.Selector) *agentv1.ListAgentsRequest_Filter {
			return &agentv1.ListAgentsRequest_Filter{BySelectorMatch: &types.SelectorMatch{Selectors: selectors, Match: how}}
		}
		at := func(instant time.Time) *agentv1.ListAgentsRequest_Filter {
			return &agentv1.ListAgentsRequest_Filter{ByExpiresBefore: instant.Format("2006-01-02 15:04:05 -0700 -07")}
		}
		end := popNode.svid.Certificates[0].NotAfter
		for _, t := range []struct {
			filter      *agentv1.ListAgentsRequest_Filter
			pop, banned bool
		}{
			{&agentv1.ListAgentsRequest_Filter{ByAttestationType: "x509pop"}, true, false},
			{&agentv1.ListAgentsRequest_Filter{ByAttestationType: "join_token"}, false, true},
			{&agentv1.ListAgentsRequest_Filter{ByAttestationType: "no_such_attestor"}, false, false},
			{&agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(true)}, false, true},
			{&agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(false)}, true, false},
			{&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(true)}, true, false},
			{&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(false)}, false, true},
			{match(types.SelectorMatch_MATCH_EXACT, has), true, false},
			{match(types.SelectorMatch_MATCH_EXACT, has[:1]), false, false},
			{match(types.SelectorMatch_MATCH_EXACT, more), false, false},
			{match(types.SelectorMatch_MATCH_SUBSET, more), true, false},
			{match(types.SelectorMatch_MATCH_SUBSET, has[:1]), false, false},
			{match(types.SelectorMatch_MATCH_SUPERSET, has[:1]), true, false},
			{match(types.SelectorMatch_MATCH_SUPERSET, more), false, false},
			{match(types.SelectorMatch_MATCH_ANY, more[len(has)-1:]), true, false},
			{match(types.SelectorMatch_MATCH_ANY, more[len(has):]), false, false},
			{at(end), false, false},
			{at(end.Add(time.Second)), true, false},
			{&agentv1.ListAgentsRequest_Filter{ByAttestationType: "x509pop", ByBanned: wrapperspb.Bool(true)}, false, false},
		} {
			var counts []int
			for _, size := range []int32{0, 1} {
				listed := pages(c, "list", s.agentPager(c, t.filter), size)
				equal(c, fmt.Sprintf("the x509pop node with %v", t.filter), slices.Contains(listed, pop), t.pop)
				if t.filter.GetByExpiresBefore() == "" {
					equal(c, fmt.Sprintf("the banned node with %v", t.filter), slices.Contains(listed, banned.svid.ID.String()), t.banned)
				}
				counts = append(counts, len(listed))
			}
			equal(c, "agents in pages", counts[1], counts[0])
			count, err := s.admin.agents.CountAgents(c.ctx, &agentv1.CountAgentsRequest{Filter: &agentv1.CountAgentsRequest_Filter{
				ByAttestationType: t.filter.ByAttestationType, BySelectorMatch: t.filter.BySelectorMatch, ByBanned: t.filter.ByBanned,
				ByCanReattest: t.filter.ByCanReattest, ByExpiresBefore: t.filter.ByExpiresBefore,
			}})
			c.ok(err, "count")
			equal(c, fmt.Sprintf("count with %v", t.filter), int(count.GetCount()), counts[0])
		}
		for _, filter := range []*agentv1.ListAgentsRequest_Filter{
			{ByExpiresBefore: "tomorrow"},
			{BySelectorMatch: &types.SelectorMatch{}},
			match(9, has),
		} {
			_, _, err := s.agentPager(c, filter)(0, "")
			c.code(err, codes.InvalidArgument, fmt.Sprintf("list with %v", filter))
		}
	})
}
