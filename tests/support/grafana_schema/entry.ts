// What a dashboard file may hold, as Grafana's own types say it. Aliases: several packages call a type `Options`.
import type { Dashboard, Panel, RowPanel } from '@grafana/schema';
import type { Options as BarGauge } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type {
  FieldConfig as TableField,
  Options as Table,
} from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type {
  FieldConfig as TimeSeriesField,
  Options as TimeSeries,
} from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

export interface Parts {
  dashboard: Dashboard;
  panel: Panel;
  row: RowPanel;
  'options of stat': Stat;
  'options of bargauge': BarGauge;
  'options of table': Table;
  'options of timeseries': TimeSeries;
  'custom of table': Partial<TableField>;
  'custom of timeseries': TimeSeriesField;
}
